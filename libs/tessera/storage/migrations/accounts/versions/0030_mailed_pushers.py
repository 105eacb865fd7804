"""When a pusher's last mail went out: the next one has time."""

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; forward only."""
    op.execute("ALTER TABLE accounts.pushers ADD COLUMN mailed_at timestamptz")

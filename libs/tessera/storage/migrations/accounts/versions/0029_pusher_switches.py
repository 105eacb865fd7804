"""Pushers can be switched off."""

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; forward only."""
    op.execute("ALTER TABLE accounts.pushers ADD COLUMN enabled boolean NOT NULL DEFAULT true")

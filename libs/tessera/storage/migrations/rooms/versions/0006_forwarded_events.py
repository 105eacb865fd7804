"""Events of other servers' users that this server passes on to the rest of the room."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; a writer of the release before leaves it false."""
    op.execute("ALTER TABLE rooms.events ADD COLUMN forwarded boolean NOT NULL DEFAULT false")

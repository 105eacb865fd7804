"""The room in which the server talks to each of its users."""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; forward only."""
    op.execute(
        """
        CREATE TABLE accounts.notice_rooms (
            user_id text PRIMARY KEY REFERENCES accounts.users ON DELETE CASCADE,
            room_id text NOT NULL
        )
        """
    )

"""The threads that users follow, or have left."""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; forward only."""
    op.execute(
        """
        CREATE TABLE accounts.thread_subscriptions (
            user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
            room_id text NOT NULL,
            thread_root text NOT NULL,
            subscribed boolean NOT NULL,
            automatic boolean NOT NULL,
            left_anchor bigint NOT NULL,
            position bigint NOT NULL,
            PRIMARY KEY (user_id, room_id, thread_root)
        )
        """
    )
    op.execute("CREATE INDEX ON accounts.thread_subscriptions (user_id, position)")

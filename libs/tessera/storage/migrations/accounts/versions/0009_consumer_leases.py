"""Which process consumes which partition of room.log."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Who is alive, judged by PostgreSQL's clock alone; one row a process for all its consumers.
    """
    CREATE TABLE accounts.consumer_owners (
        owner text PRIMARY KEY,
        consumers text[] NOT NULL,
        expires_at timestamptz NOT NULL
    ) WITH (fillfactor = 50)
    """,
    # '' nobody.
    """
    CREATE TABLE accounts.consumer_leases (
        consumer text NOT NULL,
        partition integer NOT NULL,
        owner text NOT NULL DEFAULT '',
        PRIMARY KEY (consumer, partition)
    ) WITH (fillfactor = 50)
    """,
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

"""History of rooms that is to be deleted, so that a killed gateway's purges are finished by another."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

STATEMENTS = (
    # up_to: an anchor of the room's order. claimed_until: somebody is at it, by PostgreSQL's clock.
    """
    CREATE TABLE accounts.room_purges (
        purge_id text PRIMARY KEY,
        room_id text NOT NULL,
        up_to bigint NOT NULL,
        with_local_events boolean NOT NULL,
        phase text NOT NULL DEFAULT 'delete' CHECK (phase IN ('delete', 'announce', 'complete', 'failed')),
        error text NOT NULL DEFAULT '',
        claimed_until timestamptz NOT NULL DEFAULT now(),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX room_purges_open ON accounts.room_purges (created_at) WHERE phase IN ('delete', 'announce')",
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

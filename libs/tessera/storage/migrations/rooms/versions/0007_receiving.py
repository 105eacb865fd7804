"""Events from behind a gap: the state before them is fetched with them; who fetches for which room."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    # state_before: JSON array of event IDs, of an event whose prev events need not be here. below: the anchor of the
    # live event under which this one is backfilled. named_at: when a command last named the row.
    """
    ALTER TABLE rooms.inbox ADD COLUMN state_before bytea, ADD COLUMN below bigint,
        ADD COLUMN named_at timestamptz NOT NULL DEFAULT now()
    """,
    "CREATE INDEX inbox_new ON rooms.inbox (named_at) WHERE state = 'new'",
    # What deletes an inbox row looks for what it waited for.
    "CREATE INDEX missing_by_row ON rooms.missing_events (inbox_id)",
    # Placed events with prev events that are not here: what may be backfilled begins under them.
    """
    CREATE TABLE rooms.backward_extremities (
        room_id text NOT NULL,
        event_id text NOT NULL,
        anchor bigint NOT NULL,
        sub integer NOT NULL,
        PRIMARY KEY (room_id, anchor, sub)
    )
    """,
    # One process fetches for a room. It belongs to the shard: a partition that moves leaves it behind.
    """
    CREATE TABLE rooms.fetches (
        room_id text PRIMARY KEY,
        owner text NOT NULL,
        leased_until timestamptz NOT NULL,
        failures integer NOT NULL DEFAULT 0,
        not_before timestamptz NOT NULL DEFAULT '-infinity'
    )
    """,
)


def upgrade() -> None:
    """Add the columns, tables and indexes; the tables are small where no other server took part yet."""
    for statement in STATEMENTS:
        op.execute(statement)

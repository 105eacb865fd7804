"""History that is deleted, events by time, and the originals of redacted events."""

from alembic import op

revision = "0011"
down_revision = "0010"

STATEMENTS = (
    # Up to here messages have been deleted: who knows less of the room is told that something is missing.
    "ALTER TABLE rooms.rooms ADD COLUMN purged_anchor bigint NOT NULL DEFAULT 0",
    # For GET /timestamp_to_event. Events come nearly in this order, so that it costs little to keep.
    """
    CREATE INDEX events_by_time ON rooms.events (room_id, origin_server_ts, anchor, sub) WHERE anchor IS NOT NULL
    """,
    # Few rows: what redactions took away is kept for a while.
    "CREATE INDEX events_with_originals ON rooms.events (room_id, event_id) WHERE original_pdu IS NOT NULL",
)


def upgrade() -> None:
    """Expand the schema; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

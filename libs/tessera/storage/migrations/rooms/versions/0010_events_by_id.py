"""Events by their IDs alone: other servers ask for one without saying of which room it is."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the index. Its entries are hashes of four bytes, which an event's other indexes are long compared with."""
    op.execute("CREATE INDEX events_by_id ON rooms.events USING hash (event_id)")

"""What is searched: a projection of the rooms' messages, names and topics."""

from alembic import op

revision = "0008"
down_revision = "0007"

# kind: 0 body, 1 name, 2 topic. `words` has no stems: organisations write in several languages.
STATEMENTS = (
    """
    CREATE TABLE rooms.search (
        room_id text NOT NULL,
        event_id text NOT NULL,
        kind smallint NOT NULL,
        ts bigint NOT NULL,
        sender text NOT NULL,
        words tsvector NOT NULL,
        PRIMARY KEY (room_id, event_id)
    )
    """,
    "CREATE INDEX search_words ON rooms.search USING gin (words)",
    "CREATE INDEX search_by_time ON rooms.search (room_id, ts)",
)


def upgrade() -> None:
    """An empty projection: `tessera rebuild search` fills it with what was said before."""
    for statement in STATEMENTS:
        op.execute(statement)

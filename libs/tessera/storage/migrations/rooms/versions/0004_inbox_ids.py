"""Inbox ids of different shards differ, as commands name rows by them and partitions move between shards."""

from alembic import op

revision = "0004"
down_revision = "0003"

# Each database begins at a place of its own among 2^19, 2^33 ids apart; below 2^53, which JSON carries everywhere.
_BEGIN = """
SELECT setval(pg_get_serial_sequence('rooms.inbox', 'inbox_id'), (1 + floor(random() * 524286))::bigint << 33)
"""


def upgrade() -> None:
    """Let new rows have other ids; those that are there keep theirs."""
    op.execute(_BEGIN)

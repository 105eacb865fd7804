"""Which partition lies in which room shard: data, so that an old configuration cannot revive a moved one."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    """
    CREATE TABLE accounts.partition_placement (
        partition integer PRIMARY KEY,
        shard text NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Make the table; the first start fills it."""
    for statement in STATEMENTS:
        op.execute(statement)

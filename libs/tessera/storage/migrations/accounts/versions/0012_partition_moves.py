"""Partitions on their way to another shard, so that every process knows of it beforehand and a killed move goes on."""

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS = (
    # announced: the partition lies in `source`, is fenced there sooner or later and copied; switched: it lies in
    # `target`, where nobody writes yet; finished: it is written there, and `source` keeps rows that can be deleted.
    """
    CREATE TABLE accounts.partition_moves (
        partition integer PRIMARY KEY,
        source text NOT NULL,
        target text NOT NULL,
        phase text NOT NULL DEFAULT 'announced' CHECK (phase IN ('announced', 'switched', 'finished')),
        phase_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
)


def upgrade() -> None:
    """Make the table; a process of the release before does not look at it, so none may run while partitions move."""
    for statement in STATEMENTS:
        op.execute(statement)

"""Rooms that have closed themselves to guests, who are still to be taken out."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE accounts.guest_removals (
        room_id text PRIMARY KEY,
        revision bigint NOT NULL,
        owed_since timestamptz NOT NULL DEFAULT now()
    )
    """,
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

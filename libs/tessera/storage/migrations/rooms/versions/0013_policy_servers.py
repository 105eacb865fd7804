"""PDUs that wait until their room's policy server has been asked about them."""

from alembic import op

revision = "0013"
down_revision = "0012"

STATEMENTS = (
    "ALTER TABLE rooms.inbox ADD COLUMN policy_asked boolean NOT NULL DEFAULT false",
    "ALTER TABLE rooms.inbox DROP CONSTRAINT inbox_state_check",
    """
    ALTER TABLE rooms.inbox ADD CONSTRAINT inbox_state_check
        CHECK (state IN ('new', 'parked', 'staged', 'dead', 'unsigned')) NOT VALID
    """,
    # Next to none at any time.
    "CREATE INDEX inbox_unsigned ON rooms.inbox (room_id, named_at) WHERE state = 'unsigned'",
)


def upgrade() -> None:
    """Expand the schema; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

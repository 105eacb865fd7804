"""A PDU that breaks the writer stays in the inbox, out of everybody's way, until its dead letter is replayed."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Let an inbox row be `dead`; no row is looked at, as the new condition is the wider one."""
    op.execute("ALTER TABLE rooms.inbox DROP CONSTRAINT inbox_state_check")
    op.execute(
        """
        ALTER TABLE rooms.inbox ADD CONSTRAINT inbox_state_check
        CHECK (state IN ('new', 'parked', 'staged', 'dead')) NOT VALID
        """
    )

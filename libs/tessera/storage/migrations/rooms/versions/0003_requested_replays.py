"""A dead letter that an operator wants replayed waits for a writer: the command line has no way to the topic."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Let a dead letter be `requested`; no row is looked at, as the new condition is the wider one."""
    op.execute("ALTER TABLE rooms.dead_letters DROP CONSTRAINT dead_letters_state_check")
    op.execute(
        """
        ALTER TABLE rooms.dead_letters ADD CONSTRAINT dead_letters_state_check
        CHECK (state IN ('dead', 'requested', 'replayed', 'dropped')) NOT VALID
        """
    )

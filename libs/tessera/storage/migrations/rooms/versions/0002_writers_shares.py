"""What writers are asked to do: give one partition to a named writer, or all of them to the others."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # The owner sees both when it renews its lease. A writer that is draining takes nothing and is given nothing.
    "ALTER TABLE rooms.writers ADD COLUMN draining boolean NOT NULL DEFAULT false",
    "ALTER TABLE rooms.leases ADD COLUMN heir text NOT NULL DEFAULT ''",
)


def upgrade() -> None:
    """Add the columns; a writer of the release before does not look at them."""
    for statement in STATEMENTS:
        op.execute(statement)

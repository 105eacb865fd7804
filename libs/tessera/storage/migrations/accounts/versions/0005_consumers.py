"""Consumers of room.log whose effects lie in the account store: how far each has come."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Moved in the transaction of the step's effect.
    """
    CREATE TABLE accounts.consumer_cursors (
        consumer text NOT NULL,
        partition integer NOT NULL,
        incarnation integer NOT NULL,
        position bigint NOT NULL,
        PRIMARY KEY (consumer, partition)
    ) WITH (fillfactor = 50)
    """,
    # Rooms whose records a consumer could not take: left out, while the others go on, until they are rebuilt.
    """
    CREATE TABLE accounts.stale_rooms (
        consumer text NOT NULL,
        room_id text NOT NULL,
        incarnation integer NOT NULL,
        position bigint NOT NULL,
        error text NOT NULL,
        PRIMARY KEY (consumer, room_id)
    )
    """,
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

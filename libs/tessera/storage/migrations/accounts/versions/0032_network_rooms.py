"""Rooms that application services publish in the lists of their networks."""

from alembic import op

revision = "0032"
down_revision = "0031"

STATEMENTS = (
    # instance: the service's ID and the network's, as clients name them (`services.gateway.bridged_networks`).
    """
    CREATE TABLE accounts.network_rooms (
        instance text NOT NULL,
        room_id text NOT NULL,
        PRIMARY KEY (instance, room_id)
    )
    """,
    "CREATE INDEX network_rooms_room ON accounts.network_rooms (room_id)",
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

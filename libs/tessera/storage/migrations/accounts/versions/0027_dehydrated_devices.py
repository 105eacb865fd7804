"""Devices that sleep on the server until a new login wakes them."""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; forward only."""
    op.execute(
        """
        CREATE TABLE accounts.dehydrated_devices (
            user_id text PRIMARY KEY,
            device_id text NOT NULL,
            device_data bytea NOT NULL,
            FOREIGN KEY (user_id, device_id) REFERENCES accounts.devices ON DELETE CASCADE
        )
        """
    )

"""Devices and cross-signing keys of other servers' users, as their servers told us."""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

STATEMENTS = (
    # One row a user who shares a room with somebody here. stale: the list is not known to be complete, and is asked for
    # at ask_at (PostgreSQL's clock). changed: moves with each update, so that an answer that was overtaken shows.
    """
    CREATE TABLE accounts.remote_device_lists (
        user_id text PRIMARY KEY,
        stream_id bigint NOT NULL DEFAULT 0,
        stale boolean NOT NULL DEFAULT true,
        changed bigint NOT NULL DEFAULT 0,
        ask_at timestamptz NOT NULL DEFAULT now(),
        attempts integer NOT NULL DEFAULT 0,
        master_key bytea,
        self_signing_key bytea
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX remote_device_lists_to_ask ON accounts.remote_device_lists (ask_at) WHERE stale",
    # content: the device's keys as its server told them, with `unsigned` where it has a name.
    """
    CREATE TABLE accounts.remote_devices (
        user_id text NOT NULL REFERENCES accounts.remote_device_lists ON DELETE CASCADE,
        device_id text NOT NULL,
        content bytea NOT NULL,
        PRIMARY KEY (user_id, device_id)
    )
    """,
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

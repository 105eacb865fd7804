"""Our own joins of other servers' rooms, and the state that comes with them."""

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS = (
    """
    CREATE TABLE rooms.joins (
        join_id text PRIMARY KEY,
        partition integer NOT NULL,
        room_id text NOT NULL,
        user_id text NOT NULL,
        room_version text NOT NULL,
        event_id text NOT NULL,
        pdu bytea NOT NULL,
        servers text[] NOT NULL,
        state text NOT NULL DEFAULT 'sending' CHECK (state IN ('sending', 'staged', 'done', 'failed')),
        claimed_by text NOT NULL,
        claimed_until timestamptz NOT NULL,
        error text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE UNIQUE INDEX joins_under_way ON rooms.joins (room_id) WHERE state IN ('sending', 'staged')",
    "CREATE INDEX joins_ended ON rooms.joins (created_at) WHERE state IN ('done', 'failed')",
    """
    CREATE TABLE rooms.join_events (
        join_id text NOT NULL,
        event_id text NOT NULL,
        type text NOT NULL,
        state_key text,
        sender text NOT NULL,
        membership text,
        depth bigint NOT NULL,
        origin_server_ts bigint NOT NULL,
        auth_events text[] NOT NULL,
        pdu bytea NOT NULL,
        is_state boolean NOT NULL,
        rejected text,
        PRIMARY KEY (join_id, event_id)
    )
    """,
    "CREATE UNIQUE INDEX join_state ON rooms.join_events (join_id, type, state_key) WHERE is_state",
)


def upgrade() -> None:
    """Make the tables. They belong to the shard: a join whose partition moves is begun again."""
    for statement in STATEMENTS:
        op.execute(statement)

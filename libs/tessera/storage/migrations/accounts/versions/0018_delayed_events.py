"""Events that are to be sent later unless their senders keep putting it off."""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

STATEMENTS = (
    # request: the PUT that asked for it, where a client may repeat it. replaced: the state event in force at that time.
    # taken: a gateway is sending it; due_at is when another one tries if it dies.
    """
    CREATE TABLE accounts.delayed_events (
        delay_id text PRIMARY KEY,
        user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
        device_id text NOT NULL,
        request text,
        room_id text NOT NULL,
        type text NOT NULL,
        state_key text,
        content bytea NOT NULL,
        replaced text,
        delay_ms bigint NOT NULL,
        running_since timestamptz NOT NULL DEFAULT now(),
        due_at timestamptz NOT NULL,
        taken boolean NOT NULL DEFAULT false,
        ended_at timestamptz,
        outcome text CHECK (outcome IN ('send', 'cancel')),
        event_id text
    )
    """,
    "CREATE UNIQUE INDEX delayed_events_request ON accounts.delayed_events (user_id, device_id, request)",
    "CREATE INDEX delayed_events_due ON accounts.delayed_events (due_at) WHERE ended_at IS NULL",
    "CREATE INDEX delayed_events_ended ON accounts.delayed_events (ended_at) WHERE ended_at IS NOT NULL",
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

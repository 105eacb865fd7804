"""What push gateways are still to be told."""

from alembic import op

revision = "0020"
down_revision = "0019"

STATEMENTS = (
    # A pusher with something to send. Whoever works on it moves `due_at` ahead: that is the lease, by PostgreSQL's
    # clock. `version` rises with everything new, so that nothing is forgotten that comes while the last is sent.
    """
    CREATE TABLE accounts.push_due (
        user_id text NOT NULL,
        app_id text NOT NULL,
        pushkey text NOT NULL,
        due_at timestamptz NOT NULL,
        claimed boolean NOT NULL DEFAULT false,
        version bigint NOT NULL DEFAULT 1,
        badge boolean NOT NULL DEFAULT false,
        attempts integer NOT NULL DEFAULT 0,
        PRIMARY KEY (user_id, app_id, pushkey),
        FOREIGN KEY (user_id, app_id, pushkey) REFERENCES accounts.pushers ON DELETE CASCADE
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX push_due_at ON accounts.push_due (due_at)",
    # Only what the rules said is kept; the event is read when it is sent, so that a redacted one is not.
    """
    CREATE TABLE accounts.push_queue (
        queue_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id text NOT NULL,
        app_id text NOT NULL,
        pushkey text NOT NULL,
        room_id text NOT NULL,
        event_id text NOT NULL,
        tweaks bytea NOT NULL,
        queued_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (user_id, app_id, pushkey, room_id, event_id),
        FOREIGN KEY (user_id, app_id, pushkey) REFERENCES accounts.pushers ON DELETE CASCADE
    )
    """,
    "CREATE INDEX push_queue_pusher ON accounts.push_queue (user_id, app_id, pushkey, queue_id)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in STATEMENTS:
        op.execute(statement)

"""Clients of the OAuth 2.0 API, what people are asked about them, and what they were granted."""

from alembic import op

revision = "0034"
down_revision = "0033"

STATEMENTS = (
    # Equal clients share a row: each device of each user registers anew.
    """
    CREATE TABLE accounts.oauth_clients (
        client_id text PRIMARY KEY,
        digest bytea NOT NULL UNIQUE,
        metadata jsonb NOT NULL,
        used_ts bigint NOT NULL
    )
    """,
    "CREATE INDEX ON accounts.oauth_clients (used_ts)",
    """
    CREATE TABLE accounts.oauth_sessions (
        user_id text NOT NULL,
        device_id text NOT NULL,
        client_id text NOT NULL REFERENCES accounts.oauth_clients,
        PRIMARY KEY (user_id, device_id),
        FOREIGN KEY (user_id, device_id) REFERENCES accounts.devices ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ON accounts.oauth_sessions (client_id)",
    # What a browser has open: `details` is of its kind, user_id whoever has signed in there.
    """
    CREATE TABLE accounts.oauth_tasks (
        task_hash bytea PRIMARY KEY,
        browser_hash bytea NOT NULL,
        kind text NOT NULL,
        details jsonb NOT NULL,
        user_id text,
        expires_ts bigint NOT NULL
    )
    """,
    "CREATE INDEX ON accounts.oauth_tasks (expires_ts)",
    # A code that was used stays until it would have ended: used again, it ends the session.
    """
    CREATE TABLE accounts.oauth_codes (
        code_hash bytea PRIMARY KEY,
        client_id text NOT NULL,
        user_id text NOT NULL,
        device_id text NOT NULL,
        scope text NOT NULL,
        redirect_uri text NOT NULL,
        code_challenge text NOT NULL,
        is_used boolean NOT NULL DEFAULT false,
        expires_ts bigint NOT NULL
    )
    """,
    "CREATE INDEX ON accounts.oauth_codes (expires_ts)",
    """
    CREATE TABLE accounts.oauth_device_grants (
        code_hash bytea PRIMARY KEY,
        user_code text NOT NULL UNIQUE,
        client_id text NOT NULL,
        device_id text NOT NULL,
        scope text NOT NULL,
        user_id text,
        is_denied boolean NOT NULL DEFAULT false,
        polled_ts bigint NOT NULL DEFAULT 0,
        expires_ts bigint NOT NULL
    )
    """,
    "CREATE INDEX ON accounts.oauth_device_grants (expires_ts)",
    # By user: with a password ends what was begun with it.
    "CREATE INDEX ON accounts.oauth_tasks (user_id) WHERE user_id IS NOT NULL",
    "CREATE INDEX ON accounts.oauth_codes (user_id)",
    "CREATE INDEX ON accounts.oauth_device_grants (user_id) WHERE user_id IS NOT NULL",
    "CREATE INDEX ON accounts.uia_sessions (user_id) WHERE user_id IS NOT NULL",
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

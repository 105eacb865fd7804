"""Whom accounts belong to and how that is proven: tokens to register with, addresses, one-time logins; moderation."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

REGISTRATION = (
    """
    CREATE TABLE accounts.registration_tokens (
        token text PRIMARY KEY,
        uses_allowed integer,
        completed integer NOT NULL DEFAULT 0,
        expires_ts bigint
    )
    """,
    # registration_token: the one that the session takes a use of, until it ends.
    "ALTER TABLE accounts.uia_sessions ADD COLUMN facts jsonb NOT NULL DEFAULT '{}'",
    "ALTER TABLE accounts.uia_sessions ADD COLUMN registration_token text",
    """
    CREATE INDEX uia_sessions_registration_token ON accounts.uia_sessions (registration_token)
    WHERE registration_token IS NOT NULL
    """,
    """
    CREATE TABLE accounts.policy_consents (
        user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
        policy text NOT NULL,
        version text NOT NULL,
        accepted_ts bigint NOT NULL,
        PRIMARY KEY (user_id, policy, version)
    )
    """,
)

THREEPIDS = (
    # An address belongs to one account at most.
    """
    CREATE TABLE accounts.threepids (
        medium text NOT NULL,
        address text NOT NULL,
        user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
        validated_ts bigint NOT NULL,
        added_ts bigint NOT NULL,
        PRIMARY KEY (medium, address)
    )
    """,
    "CREATE INDEX threepids_user ON accounts.threepids (user_id)",
    # Where identity servers were told of an address, so that they can be told to forget it.
    """
    CREATE TABLE accounts.bound_threepids (
        user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
        medium text NOT NULL,
        address text NOT NULL,
        id_server text NOT NULL,
        PRIMARY KEY (user_id, medium, address, id_server)
    )
    """,
    # token_hashes: of the tokens in the mails that were sent, the newest last.
    """
    CREATE TABLE accounts.threepid_validations (
        session_id text PRIMARY KEY,
        purpose text NOT NULL,
        medium text NOT NULL,
        address text NOT NULL,
        client_secret text NOT NULL,
        send_attempt bigint NOT NULL,
        next_link text,
        token_hashes bytea[] NOT NULL,
        validated_ts bigint,
        expires_ts bigint NOT NULL,
        UNIQUE (purpose, medium, address, client_secret)
    )
    """,
    "CREATE INDEX threepid_validations_expires ON accounts.threepid_validations (expires_ts)",
)

TOKENS = tuple(
    statement
    for name in ("openid_tokens", "login_tokens")
    for statement in (
        f"""
        CREATE TABLE accounts.{name} (
            token_hash bytea PRIMARY KEY,
            user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
            expires_ts bigint NOT NULL
        )
        """,
        f"CREATE INDEX {name}_expires ON accounts.{name} (expires_ts)",
    )
)

USERS = (
    "ALTER TABLE accounts.users ADD COLUMN suspended boolean NOT NULL DEFAULT false",
    "ALTER TABLE accounts.users ADD COLUMN locked boolean NOT NULL DEFAULT false",
    "ALTER TABLE accounts.users ADD COLUMN user_type text",
    "ALTER TABLE accounts.users ADD COLUMN appservice_id text",
)


def upgrade() -> None:
    """Make the tables; forward only."""
    for statement in (*REGISTRATION, *THREEPIDS, *TOKENS, *USERS):
        op.execute(statement)

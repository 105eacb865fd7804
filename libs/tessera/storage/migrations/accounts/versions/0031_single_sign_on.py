"""Who people are at providers of identities, sign-ins under way, and whose an interactive authentication is."""

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, add the column; forward only."""
    op.execute(
        """
        CREATE TABLE accounts.external_identities (
            auth_provider text NOT NULL,
            external_id text NOT NULL,
            user_id text NOT NULL REFERENCES accounts.users (user_id),
            PRIMARY KEY (auth_provider, external_id)
        )
        """
    )
    op.execute("CREATE INDEX ON accounts.external_identities (user_id)")
    op.execute(
        """
        CREATE TABLE accounts.sso_attempts (
            state_hash bytea PRIMARY KEY,
            browser_hash bytea NOT NULL,
            auth_provider text NOT NULL,
            nonce text NOT NULL,
            code_verifier text NOT NULL,
            redirect_url text,
            uia_session_id text,
            is_proven boolean NOT NULL DEFAULT false,
            expires_ts bigint NOT NULL,
            CHECK ((redirect_url IS NULL) <> (uia_session_id IS NULL))
        )
        """
    )
    op.execute("CREATE INDEX ON accounts.sso_attempts (expires_ts)")
    op.execute("ALTER TABLE accounts.uia_sessions ADD COLUMN user_id text")

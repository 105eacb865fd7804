"""The public keys of other servers, and the documents in which they came."""

from alembic import op

revision = "0014"
down_revision = "0013"

STATEMENTS = (
    # A key outlives its server: old events are verified with it. Our own keys of former days stand here as well.
    """
    CREATE TABLE accounts.server_keys (
        server_name text NOT NULL,
        key_id text NOT NULL,
        public_key bytea NOT NULL,
        valid_until_ts bigint NOT NULL,
        is_old boolean NOT NULL DEFAULT false,
        PRIMARY KEY (server_name, key_id)
    )
    """,
    # The newest document of a server, as it signed it: notaries pass it on.
    """
    CREATE TABLE accounts.server_key_documents (
        server_name text PRIMARY KEY,
        document bytea NOT NULL,
        valid_until_ts bigint NOT NULL,
        fetched_ts bigint NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Make the tables."""
    for statement in STATEMENTS:
        op.execute(statement)

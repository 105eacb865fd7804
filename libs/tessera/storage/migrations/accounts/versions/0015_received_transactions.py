"""Transactions of other servers with the replies that they got, and EDUs that must not be lost."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE accounts.received_transactions (
        origin text NOT NULL,
        txn_id text NOT NULL,
        received_ms bigint NOT NULL,
        reply bytea NOT NULL,
        PRIMARY KEY (origin, txn_id)
    )
    """,
    "CREATE INDEX received_transactions_by_age ON accounts.received_transactions (received_ms)",
    """
    CREATE TABLE accounts.received_edus (
        edu_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        origin text NOT NULL,
        edu bytea NOT NULL,
        received_ms bigint NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

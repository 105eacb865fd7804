"""Erased users in the order of their erasure, so that who remembers them reads only what is new."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE accounts.erasures (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id text NOT NULL UNIQUE REFERENCES accounts.users ON DELETE CASCADE
    )
    """,
    "INSERT INTO accounts.erasures (user_id) SELECT user_id FROM accounts.users WHERE erased ORDER BY user_id",
)


def upgrade() -> None:
    """Create the table with what is known; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

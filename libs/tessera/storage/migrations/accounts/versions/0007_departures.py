"""Rooms that a closed account still has to leave: one row for each such account."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# seed: what the ids of the leave commands are made of. The row stays for a while after the last leave, since a
# join that was on its way when the account was closed comes after it; hence owed_since, by PostgreSQL's clock.
STATEMENTS = (
    """
    CREATE TABLE accounts.departures (
        user_id text PRIMARY KEY REFERENCES accounts.users ON DELETE CASCADE,
        seed bytea NOT NULL,
        owed_since timestamptz NOT NULL DEFAULT now()
    )
    """,
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

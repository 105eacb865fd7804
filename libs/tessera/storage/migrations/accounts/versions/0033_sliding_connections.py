"""What connections of sliding sync were told."""

from alembic import op

revision = "0033"
down_revision = "0032"

STATEMENTS = (
    # The generations of a connection that its client may go on from: two, as a rule. `told` is written when something
    # new enters, not with every answer; `number` orders the generations.
    """
    CREATE TABLE accounts.sliding_connections (
        user_id text NOT NULL,
        device_id text NOT NULL,
        conn_id text NOT NULL,
        name text NOT NULL,
        generation text NOT NULL,
        number bigint GENERATED ALWAYS AS IDENTITY,
        told bytea NOT NULL,
        PRIMARY KEY (user_id, device_id, conn_id, generation)
    )
    """,
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

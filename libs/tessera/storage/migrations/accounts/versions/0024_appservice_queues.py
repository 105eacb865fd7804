"""What application services are still to be told: an ordered queue for each."""

from alembic import op

revision = "0024"
down_revision = "0023"

STATEMENTS = (
    # One row a service, from its first transaction on. txn_*: the transaction under way, as it is sent again and again
    # until the service has taken it, with the rows that it carries; tried at due_at, by PostgreSQL's clock.
    """
    CREATE TABLE accounts.appservices (
        service_id text PRIMARY KEY,
        due_at timestamptz NOT NULL DEFAULT now(),
        failures integer NOT NULL DEFAULT 0,
        failing_since timestamptz,
        last_attempt timestamptz,
        last_success timestamptz,
        last_error text,
        retry_seconds double precision NOT NULL DEFAULT 0,
        txn_id text,
        txn_body bytea,
        txn_events bigint[] NOT NULL DEFAULT '{}',
        txn_ephemeral bigint[] NOT NULL DEFAULT '{}'
    ) WITH (fillfactor = 50)
    """,
    # No CACHE: the numbers of one connection must not lie below those that another one gave before.
    "CREATE SEQUENCE accounts.appservice_seq",
    # Events by name: their bytes lie in the rooms' shards. aside: a JSON object with what does not lie there.
    """
    CREATE TABLE accounts.appservice_events (
        service_id text NOT NULL,
        seq bigint NOT NULL DEFAULT nextval('accounts.appservice_seq'),
        room_id text NOT NULL,
        event_id text NOT NULL,
        aside bytea,
        queued_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (service_id, seq)
    )
    """,
    # The newest of each subject.
    """
    CREATE TABLE accounts.appservice_ephemeral (
        service_id text NOT NULL,
        subject text NOT NULL,
        seq bigint NOT NULL DEFAULT nextval('accounts.appservice_seq'),
        room_id text NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (service_id, subject)
    )
    """,
    "CREATE INDEX appservice_ephemeral_in_order ON accounts.appservice_ephemeral (service_id, seq)",
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

"""What other servers are still to be sent: an ordered queue for each destination."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

STATEMENTS = (
    # One row a server. bucket: a stable hash; processes share the buckets out. pending: something waits for it, and
    # it is tried at due_at, by PostgreSQL's clock. catching_up: it fails; rooms with news for it are noted
    # in federation_marks and no longer event by event. txn_*: the transaction under way, as it is sent again and
    # again until the server has taken it, with the rows that it carries.
    """
    CREATE TABLE accounts.federation_destinations (
        destination text PRIMARY KEY,
        bucket integer NOT NULL,
        pending boolean NOT NULL DEFAULT false,
        due_at timestamptz NOT NULL DEFAULT now(),
        catching_up boolean NOT NULL DEFAULT false,
        failures integer NOT NULL DEFAULT 0,
        failing_since timestamptz,
        last_attempt timestamptz,
        last_success timestamptz,
        last_error text,
        retry_seconds double precision NOT NULL DEFAULT 0,
        txn_id text,
        txn_body bytea,
        txn_pdus bigint[] NOT NULL DEFAULT '{}',
        txn_edus bigint[] NOT NULL DEFAULT '{}'
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX federation_due ON accounts.federation_destinations (bucket, due_at) WHERE pending",
    # No CACHE: the numbers of one connection must not lie below those that another one gave before.
    "CREATE SEQUENCE accounts.federation_seq",
    # Events by name: their bytes lie in the rooms' shards.
    """
    CREATE TABLE accounts.federation_pdus (
        destination text NOT NULL,
        seq bigint NOT NULL DEFAULT nextval('accounts.federation_seq'),
        room_id text NOT NULL,
        event_id text NOT NULL,
        PRIMARY KEY (destination, seq)
    )
    """,
    # Rooms that have had news since the destination fell silent.
    """
    CREATE TABLE accounts.federation_marks (
        destination text NOT NULL,
        room_id text NOT NULL,
        PRIMARY KEY (destination, room_id)
    )
    """,
    # lane: 0 to-device, 1 keys, 2 receipts. key: what a later EDU of the same key replaces; NULL: nothing.
    """
    CREATE TABLE accounts.federation_edus (
        destination text NOT NULL,
        lane smallint NOT NULL,
        seq bigint NOT NULL DEFAULT nextval('accounts.federation_seq'),
        key text,
        edu bytea NOT NULL,
        PRIMARY KEY (destination, lane, seq)
    )
    """,
    "CREATE UNIQUE INDEX federation_edus_by_key ON accounts.federation_edus (destination, key) WHERE key IS NOT NULL",
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)

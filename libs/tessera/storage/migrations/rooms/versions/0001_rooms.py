"""The tables of a room shard."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    # One row a partition that lies here. Every writing transaction moves `head` in one statement guarded by
    # (partition, epoch, head); `state` = 'moved' tells an old configuration that the partition lives elsewhere.
    """
    CREATE TABLE rooms.partitions (
        partition integer PRIMARY KEY,
        state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'moved')),
        epoch bigint NOT NULL DEFAULT 0,
        incarnation integer NOT NULL DEFAULT 1,
        head bigint NOT NULL DEFAULT 0,
        announced bigint NOT NULL DEFAULT 0,
        topic_id text NOT NULL DEFAULT '',
        done_offset bigint NOT NULL DEFAULT -1,
        clean boolean NOT NULL DEFAULT true
    ) WITH (fillfactor = 50)
    """,
    # Who is alive, judged by PostgreSQL's clock alone; one row a process, so that a renewal touches one row. The
    # process's lease connection holds the advisory lock `lock_key`: a lock that is gone proves that the process has
    # ended, and its partitions are free at once (NULL: no such proof, behind a connection pooler).
    """
    CREATE TABLE rooms.writers (
        owner text PRIMARY KEY,
        name text NOT NULL,
        lock_key bigint,
        expires_at timestamptz NOT NULL
    ) WITH (fillfactor = 50)
    """,
    # Which process writes a partition ('' nobody). `epoch` is the partition's own unless somebody is just taking it.
    """
    CREATE TABLE rooms.leases (
        partition integer PRIMARY KEY REFERENCES rooms.partitions,
        owner text NOT NULL DEFAULT '',
        epoch bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE rooms.outcomes (
        command_id bytea PRIMARY KEY,
        partition integer NOT NULL,
        status smallint NOT NULL,
        body bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    # Commands that a taker runs singly after an unclean end.
    """
    CREATE TABLE rooms.command_attempts (
        partition integer NOT NULL,
        command_id bytea PRIMARY KEY,
        attempts integer NOT NULL,
        error text NOT NULL DEFAULT ''
    )
    """,
    """
    CREATE TABLE rooms.dead_letters (
        command_id bytea PRIMARY KEY,
        partition integer NOT NULL,
        room_id text NOT NULL,
        command bytea NOT NULL,
        error text NOT NULL,
        state text NOT NULL DEFAULT 'dead' CHECK (state IN ('dead', 'replayed', 'dropped')),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE rooms.rooms (
        room_id text PRIMARY KEY,
        partition integer NOT NULL,
        room_version text NOT NULL,
        creator text NOT NULL,
        create_event_id text NOT NULL,
        created_ms bigint NOT NULL,
        forward_extremities text[] NOT NULL,
        depth bigint NOT NULL,
        last_position bigint NOT NULL,
        joined_count integer NOT NULL DEFAULT 0,
        invited_count integer NOT NULL DEFAULT 0,
        notify_count bigint NOT NULL DEFAULT 0,
        highlight_all_count bigint NOT NULL DEFAULT 0,
        forked boolean NOT NULL DEFAULT false,
        min_sub integer NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX rooms_by_partition ON rooms.rooms (partition)",
    # One row a position. EVENT records keep no body: they are made again from the event's row.
    """
    CREATE TABLE rooms.records (
        partition integer NOT NULL,
        position bigint NOT NULL,
        incarnation integer NOT NULL,
        room_id text NOT NULL,
        room_previous bigint NOT NULL,
        kind smallint NOT NULL,
        event_id text,
        body bytea,
        PRIMARY KEY (partition, position)
    )
    """,
    "CREATE INDEX records_by_room ON rooms.records (room_id, position)",
    # anchor and sub are the room's one order (NULL for outliers, rejected and soft-failed events, which have no place
    # in it). What a record of the event says beside the PDU stands in the columns after `pdu`.
    """
    CREATE TABLE rooms.events (
        room_id text NOT NULL,
        event_id text NOT NULL,
        anchor bigint,
        sub integer,
        type text NOT NULL,
        state_key text,
        sender text NOT NULL,
        membership text,
        depth bigint NOT NULL,
        origin_server_ts bigint NOT NULL,
        received_ms bigint NOT NULL,
        outlier boolean NOT NULL DEFAULT false,
        rejected text,
        soft_failed text,
        forked boolean NOT NULL DEFAULT false,
        pdu bytea NOT NULL,
        sender_device text,
        txn_id text,
        replaces_state text,
        history_visibility text NOT NULL DEFAULT 'shared',
        servers text[] NOT NULL DEFAULT '{}',
        redacts text,
        redacted_by text,
        original_pdu bytea,
        relates_to text,
        rel_type text,
        relation_key text,
        thread_root text,
        notify_count bigint NOT NULL DEFAULT 0,
        highlight_all_count bigint NOT NULL DEFAULT 0,
        thread_notify_count bigint NOT NULL DEFAULT 0,
        thread_highlight_all_count bigint NOT NULL DEFAULT 0,
        mentions text[] NOT NULL DEFAULT '{}',
        joined_count integer NOT NULL DEFAULT 0,
        invited_count integer NOT NULL DEFAULT 0,
        stripped_state bytea,
        PRIMARY KEY (room_id, event_id)
    )
    """,
    "CREATE UNIQUE INDEX events_in_order ON rooms.events (room_id, anchor, sub) WHERE anchor IS NOT NULL",
    """
    CREATE INDEX events_by_relation ON rooms.events (room_id, relates_to, rel_type, anchor, sub)
    WHERE relates_to IS NOT NULL
    """,
    """
    CREATE INDEX events_by_thread ON rooms.events (room_id, thread_root, anchor, sub) WHERE thread_root IS NOT NULL
    """,
    "CREATE INDEX events_by_sender ON rooms.events (room_id, sender, anchor, sub) WHERE anchor IS NOT NULL",
    "CREATE INDEX events_by_redaction ON rooms.events (room_id, redacts) WHERE redacts IS NOT NULL",
    # Few rows: what unread counts must leave out.
    "CREATE INDEX events_redacted ON rooms.events (room_id, anchor) WHERE redacted_by IS NOT NULL",
    """
    CREATE TABLE rooms.event_edges (
        room_id text NOT NULL,
        prev_event_id text NOT NULL,
        event_id text NOT NULL,
        PRIMARY KEY (room_id, prev_event_id, event_id)
    )
    """,
    """
    CREATE TABLE rooms.current_state (
        room_id text NOT NULL,
        type text NOT NULL,
        state_key text NOT NULL,
        event_id text NOT NULL,
        anchor bigint NOT NULL,
        sub integer NOT NULL DEFAULT 0,
        membership text,
        PRIMARY KEY (room_id, type, state_key)
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX current_members ON rooms.current_state (state_key, membership) WHERE type = 'm.room.member'",
    # Every change of current state in the room's order; event_id NULL where a resolution removed the key. The state
    # at any key is the newest row at or below it, one index look-up for each (type, state key).
    """
    CREATE TABLE rooms.state_history (
        room_id text NOT NULL,
        type text NOT NULL,
        state_key text NOT NULL,
        anchor bigint NOT NULL,
        sub integer NOT NULL DEFAULT 0,
        event_id text,
        membership text,
        PRIMARY KEY (room_id, type, state_key, anchor, sub)
    )
    """,
    # For "which state changed between two positions".
    "CREATE INDEX state_history_in_order ON rooms.state_history (room_id, anchor, sub)",
    # Where the room forked, the state before an event is a delta against the room's state in its order at `base`.
    """
    CREATE TABLE rooms.forked_states (
        room_id text NOT NULL,
        event_id text NOT NULL,
        base_anchor bigint NOT NULL,
        base_sub integer NOT NULL,
        delta bytea NOT NULL,
        PRIMARY KEY (room_id, event_id)
    )
    """,
    """
    CREATE TABLE rooms.room_servers (
        room_id text NOT NULL,
        server_name text NOT NULL,
        joined_count integer NOT NULL,
        PRIMARY KEY (room_id, server_name)
    ) WITH (fillfactor = 80)
    """,
    # Cumulative counters of each thread, the sums that the next event of the thread continues.
    """
    CREATE TABLE rooms.threads (
        room_id text NOT NULL,
        thread_root text NOT NULL,
        reply_count bigint NOT NULL,
        latest_event_id text NOT NULL,
        latest_anchor bigint NOT NULL,
        notify_count bigint NOT NULL,
        highlight_all_count bigint NOT NULL,
        PRIMARY KEY (room_id, thread_root)
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX threads_by_latest ON rooms.threads (room_id, latest_anchor)",
    """
    CREATE TABLE rooms.mentions (
        room_id text NOT NULL,
        user_id text NOT NULL,
        anchor bigint NOT NULL,
        thread_root text NOT NULL DEFAULT '',
        event_id text NOT NULL,
        PRIMARY KEY (room_id, user_id, anchor)
    )
    """,
    """
    CREATE TABLE rooms.receipts (
        room_id text NOT NULL,
        receipt_type text NOT NULL,
        user_id text NOT NULL,
        thread_id text NOT NULL DEFAULT '',
        event_id text NOT NULL,
        ts bigint NOT NULL,
        position bigint NOT NULL,
        PRIMARY KEY (room_id, receipt_type, user_id, thread_id)
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX receipts_by_position ON rooms.receipts (room_id, position)",
    # What other servers sent, stored before they are answered; the inbox is the truth, room.pdus names its rows.
    # 'staged' rows are ancestors that were fetched; an outlier is one that is wanted as an auth event only.
    """
    CREATE TABLE rooms.inbox (
        inbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        partition integer NOT NULL,
        room_id text NOT NULL,
        origin text NOT NULL,
        event_id text NOT NULL,
        pdu bytea NOT NULL,
        received_ms bigint NOT NULL,
        state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'parked', 'staged')),
        outlier boolean NOT NULL DEFAULT false,
        UNIQUE (room_id, event_id)
    )
    """,
    "CREATE INDEX inbox_by_partition ON rooms.inbox (partition, inbox_id)",
    # Parked PDUs wait for these ancestors; an auth event that is no ancestor suffices as an outlier.
    """
    CREATE TABLE rooms.missing_events (
        room_id text NOT NULL,
        missing_event_id text NOT NULL,
        inbox_id bigint NOT NULL REFERENCES rooms.inbox ON DELETE CASCADE,
        as_outlier boolean NOT NULL DEFAULT false,
        PRIMARY KEY (room_id, missing_event_id, inbox_id)
    )
    """,
)


def upgrade() -> None:
    """Make the tables; the runner made the schema."""
    for statement in STATEMENTS:
        op.execute(statement)

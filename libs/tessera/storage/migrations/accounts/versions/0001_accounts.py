"""The account store: users, sessions, the user log and what users keep on the server.

JSON contents are bytea, exactly as orjson wrote them, so that answers splice them without parsing.
Times are milliseconds since the epoch, as the gateway's clock gave them.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

USERS = (
    "CREATE SCHEMA IF NOT EXISTS accounts",
    """
    CREATE TABLE accounts.users (
        user_id text PRIMARY KEY,
        password_hash text,
        is_guest boolean NOT NULL DEFAULT false,
        is_admin boolean NOT NULL DEFAULT false,
        deactivated boolean NOT NULL DEFAULT false,
        erased boolean NOT NULL DEFAULT false,
        created_ts bigint NOT NULL
    )
    """,
    """
    CREATE TABLE accounts.devices (
        user_id text NOT NULL REFERENCES accounts.users ON DELETE CASCADE,
        device_id text NOT NULL,
        display_name text,
        created_ts bigint NOT NULL,
        last_seen_ts bigint,
        last_seen_ip text,
        PRIMARY KEY (user_id, device_id)
    ) WITH (fillfactor = 80)
    """,
    # Only hashes of tokens are kept: whoever reads the database cannot act as its users.
    # supersedes: the refresh token that is revoked when this token is used for the first time.
    """
    CREATE TABLE accounts.refresh_tokens (
        token_hash bytea PRIMARY KEY,
        user_id text NOT NULL,
        device_id text NOT NULL,
        created_ts bigint NOT NULL,
        expires_ts bigint,
        session_expires_ts bigint,
        supersedes bytea,
        FOREIGN KEY (user_id, device_id) REFERENCES accounts.devices ON DELETE CASCADE
    )
    """,
    "CREATE INDEX refresh_tokens_device ON accounts.refresh_tokens (user_id, device_id)",
    # refresh_hash: the refresh token that was issued together with this access token.
    """
    CREATE TABLE accounts.access_tokens (
        token_hash bytea PRIMARY KEY,
        user_id text NOT NULL,
        device_id text NOT NULL,
        created_ts bigint NOT NULL,
        expires_ts bigint,
        refresh_hash bytea,
        supersedes bytea,
        FOREIGN KEY (user_id, device_id) REFERENCES accounts.devices ON DELETE CASCADE
    )
    """,
    "CREATE INDEX access_tokens_device ON accounts.access_tokens (user_id, device_id)",
    """
    CREATE TABLE accounts.uia_sessions (
        session_id text PRIMARY KEY,
        operation text NOT NULL,
        identity bytea NOT NULL,
        completed text[] NOT NULL DEFAULT '{}',
        expires_ts bigint NOT NULL
    )
    """,
    "CREATE INDEX uia_sessions_expires ON accounts.uia_sessions (expires_ts)",
    "CREATE TABLE accounts.registration_nonces (nonce text PRIMARY KEY, expires_ts bigint NOT NULL)",
    "CREATE INDEX registration_nonces_expires ON accounts.registration_nonces (expires_ts)",
)

USER_LOG = (
    # The head is a row of its own, narrow and often updated in place.
    """
    CREATE TABLE accounts.user_log_heads (
        user_id text PRIMARY KEY,
        head bigint NOT NULL
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE accounts.user_log (
        user_id text NOT NULL,
        position bigint NOT NULL,
        kind smallint NOT NULL,
        room_id text NOT NULL DEFAULT '',
        key text NOT NULL DEFAULT '',
        body bytea,
        PRIMARY KEY (user_id, position)
    )
    """,
    # (incarnation, position): the record of the room's partition that set the row; a row yields to a higher one only.
    """
    CREATE TABLE accounts.user_rooms (
        user_id text NOT NULL,
        room_id text NOT NULL,
        membership text NOT NULL,
        event_id text NOT NULL,
        sender text NOT NULL,
        partition integer NOT NULL,
        incarnation integer NOT NULL,
        position bigint NOT NULL,
        log_position bigint NOT NULL,
        forgotten boolean NOT NULL DEFAULT false,
        stripped_state bytea,
        PRIMARY KEY (user_id, room_id)
    )
    """,
    "CREATE INDEX user_rooms_room ON accounts.user_rooms (room_id, membership)",
    # content NULL: deleted, kept so that incremental syncs can tell.
    """
    CREATE TABLE accounts.account_data (
        user_id text NOT NULL,
        room_id text NOT NULL DEFAULT '',
        type text NOT NULL,
        content bytea,
        position bigint NOT NULL,
        PRIMARY KEY (user_id, room_id, type)
    )
    """,
    """
    CREATE TABLE accounts.read_positions (
        user_id text NOT NULL,
        room_id text NOT NULL,
        receipt_type text NOT NULL,
        thread_id text NOT NULL DEFAULT '',
        event_id text NOT NULL,
        anchor bigint NOT NULL,
        sub integer NOT NULL,
        ts bigint NOT NULL,
        PRIMARY KEY (user_id, room_id, receipt_type, thread_id)
    )
    """,
    # One dense stream of "the device list of this user changed"; device_id '' stands for the cross-signing keys.
    """
    CREATE TABLE accounts.device_changes_head (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        head bigint NOT NULL
    )
    """,
    "INSERT INTO accounts.device_changes_head (head) VALUES (0)",
    """
    CREATE TABLE accounts.device_changes (
        position bigint PRIMARY KEY,
        user_id text NOT NULL,
        device_id text NOT NULL DEFAULT ''
    )
    """,
    "CREATE INDEX device_changes_user ON accounts.device_changes (user_id, position)",
)

SETTINGS = (
    # custom: a JSON object of the fields besides the two that events carry.
    # search_text: what the user directory is searched by, lower case.
    """
    CREATE TABLE accounts.profiles (
        user_id text PRIMARY KEY REFERENCES accounts.users ON DELETE CASCADE,
        displayname text,
        avatar_url text,
        custom bytea,
        search_text text NOT NULL
    )
    """,
    # A changed name is owed to the user's rooms, which lie in other stores; the row goes when they have it.
    """
    CREATE TABLE accounts.profile_debts (
        user_id text PRIMARY KEY REFERENCES accounts.users ON DELETE CASCADE,
        revision bigint NOT NULL
    )
    """,
    """
    CREATE TABLE accounts.filters (
        user_id text NOT NULL,
        filter_id bigint NOT NULL,
        digest bytea NOT NULL,
        definition bytea NOT NULL,
        PRIMARY KEY (user_id, filter_id),
        UNIQUE (user_id, digest)
    )
    """,
    "CREATE TABLE accounts.push_rules (user_id text PRIMARY KEY, rules bytea NOT NULL)",
    """
    CREATE TABLE accounts.pushers (
        user_id text NOT NULL,
        app_id text NOT NULL,
        pushkey text NOT NULL,
        device_id text NOT NULL,
        kind text NOT NULL,
        app_display_name text NOT NULL,
        device_display_name text NOT NULL,
        profile_tag text,
        lang text NOT NULL,
        data bytea NOT NULL,
        created_ts bigint NOT NULL,
        PRIMARY KEY (user_id, app_id, pushkey)
    )
    """,
    "CREATE INDEX pushers_pushkey ON accounts.pushers (app_id, pushkey)",
    "CREATE INDEX pushers_device ON accounts.pushers (user_id, device_id)",
    """
    CREATE TABLE accounts.presence (
        user_id text PRIMARY KEY,
        presence text NOT NULL,
        status_msg text,
        last_active_ts bigint NOT NULL
    ) WITH (fillfactor = 70)
    """,
)

DIRECTORY = (
    # reserved (createRoom has begun) -> bound (the room exists) -> the row goes when it is released.
    """
    CREATE TABLE accounts.aliases (
        alias text PRIMARY KEY,
        creator text NOT NULL,
        state text NOT NULL CHECK (state IN ('reserved', 'bound')),
        room_id text,
        reserved_until_ts bigint,
        created_ts bigint NOT NULL,
        CHECK (state <> 'bound' OR room_id IS NOT NULL)
    )
    """,
    "CREATE INDEX aliases_room ON accounts.aliases (room_id) WHERE state = 'bound'",
    # Whether a room is published is primary data; the rest of the row is a projection of the room's state.
    """
    CREATE TABLE accounts.room_directory (
        room_id text PRIMARY KEY,
        published boolean NOT NULL DEFAULT false,
        incarnation integer NOT NULL DEFAULT 0,
        position bigint NOT NULL DEFAULT -1,
        name text,
        topic text,
        canonical_alias text,
        avatar_url text,
        room_type text,
        join_rule text NOT NULL DEFAULT 'invite',
        guest_can_join boolean NOT NULL DEFAULT false,
        world_readable boolean NOT NULL DEFAULT false,
        encryption text,
        room_version text,
        joined_members bigint NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX room_directory_published ON accounts.room_directory (joined_members DESC, room_id) WHERE published",
    """
    CREATE INDEX room_directory_open ON accounts.room_directory (room_id)
    WHERE join_rule = 'public' OR world_readable
    """,
)


def upgrade() -> None:
    """Create the schema; forward only."""
    for statement in (*USERS, *USER_LOG, *SETTINGS, *DIRECTORY):
        op.execute(statement)

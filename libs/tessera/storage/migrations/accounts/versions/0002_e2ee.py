"""End-to-end encryption: device keys, one-time keys, cross-signing, the device stream, to-device, key backup.

JSON is kept as bytea, exactly as it was serialised, and spliced into answers as it is.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DEVICE_KEYS = """
CREATE TABLE accounts.device_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    content bytea NOT NULL,          -- as the device uploaded it, without `unsigned`
    signed_content bytea,            -- `content` with the owner's key_signatures merged in; NULL when there are none
    PRIMARY KEY (user_id, device_id)
);

CREATE SEQUENCE accounts.one_time_keys_batch;
CREATE TABLE accounts.one_time_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id text NOT NULL,
    batch bigint NOT NULL,           -- one number for an upload: keys are given out in the order of their uploads
    content bytea NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX one_time_keys_in_order ON accounts.one_time_keys (user_id, device_id, algorithm, batch);

CREATE TABLE accounts.fallback_keys (
    user_id text NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id text NOT NULL,
    content bytea NOT NULL,
    used boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_id, device_id, algorithm)
);
"""

CROSS_SIGNING = """
CREATE TABLE accounts.cross_signing_keys (
    user_id text NOT NULL,
    usage text NOT NULL CHECK (usage IN ('master', 'self_signing', 'user_signing')),
    key_id text NOT NULL,            -- the unpadded base64 public key
    content bytea NOT NULL,          -- as uploaded
    signed_content bytea,            -- with the owner's later signatures merged in; NULL when there are none
    PRIMARY KEY (user_id, usage)
);

-- Signatures uploaded after the key itself. `target_key_id` is a device ID or a cross-signing public key.
CREATE TABLE accounts.key_signatures (
    target_user_id text NOT NULL,
    target_key_id text NOT NULL,
    signer_user_id text NOT NULL,
    signer_key_id text NOT NULL,     -- with its algorithm: ed25519:...
    signature text NOT NULL,
    PRIMARY KEY (target_user_id, target_key_id, signer_user_id, signer_key_id)
);
CREATE INDEX key_signatures_by_signer ON accounts.key_signatures (signer_user_id, signer_key_id);
"""

# The stream itself is part of the first version of the schema.
# observer: the only user who sees the change ('' = everybody): what somebody's user-signing key signed.
DEVICE_CHANGES = """
ALTER TABLE accounts.device_changes ADD COLUMN observer text NOT NULL DEFAULT '';
CREATE INDEX device_changes_observer ON accounts.device_changes (observer, position) WHERE observer <> '';
"""

TO_DEVICE = """
CREATE TABLE accounts.to_device (
    user_id text NOT NULL,
    device_id text NOT NULL,
    position bigint NOT NULL,        -- of its TO_DEVICE entry in the user log
    sender text NOT NULL,
    type text NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

CREATE TABLE accounts.to_device_transactions (
    user_id text NOT NULL,
    device_id text NOT NULL,
    event_type text NOT NULL,
    txn_id text NOT NULL,
    created_ts bigint NOT NULL,
    PRIMARY KEY (user_id, device_id, event_type, txn_id)
);
CREATE INDEX to_device_transactions_by_age ON accounts.to_device_transactions (created_ts);
"""

KEY_BACKUP = """
CREATE TABLE accounts.key_backup_versions (
    user_id text NOT NULL,
    version bigint NOT NULL,
    algorithm text NOT NULL,
    auth_data bytea NOT NULL,
    etag bigint NOT NULL DEFAULT 0,
    session_count bigint NOT NULL DEFAULT 0,
    deleted boolean NOT NULL DEFAULT false,  -- kept: deleting twice succeeds, and numbers are not given again
    PRIMARY KEY (user_id, version)
);

CREATE TABLE accounts.key_backup_sessions (
    user_id text NOT NULL,
    version bigint NOT NULL,
    room_id text NOT NULL,
    session_id text NOT NULL,
    first_message_index bigint NOT NULL,
    forwarded_count bigint NOT NULL,
    is_verified boolean NOT NULL,
    session_data bytea NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);
"""


def upgrade() -> None:
    """Create the tables; forward only."""
    for statements in (DEVICE_KEYS, CROSS_SIGNING, DEVICE_CHANGES, TO_DEVICE, KEY_BACKUP):
        for statement in statements.split(";\n"):  # one at a time: a prepared statement holds one command
            if statement.strip():
                op.execute(statement)

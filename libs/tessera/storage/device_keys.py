"""Device identity keys.

A row keeps the object as the device uploaded it, and, once the owner signed it, the same with those signatures merged
in; both as bytes that answers splice.

Spec: C-S API §Device keys, §Cross-signing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.storage import device_changes
from tessera.storage.database import Transaction
from tessera.storage.device_changes import DeviceChange

# Uploads of one device follow each other; locks of other kinds use other seeds.
LOCK_DEVICE = "SELECT pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2, 7001))"

FIND = "SELECT content FROM accounts.device_keys WHERE user_id = $1 AND device_id = $2"

SET = """
INSERT INTO accounts.device_keys (user_id, device_id, content, signed_content) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id, device_id) DO UPDATE SET content = excluded.content, signed_content = excluded.signed_content
"""

OF_USERS = """
SELECT k.user_id, k.device_id, coalesce(k.signed_content, k.content), d.display_name
FROM accounts.device_keys k LEFT JOIN accounts.devices d USING (user_id, device_id)
WHERE k.user_id = ANY($1::text[])
"""

OF_DEVICES = """
SELECT k.user_id, k.device_id, coalesce(k.signed_content, k.content), d.display_name
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS asked (user_id, device_id)) asked
JOIN accounts.device_keys k USING (user_id, device_id)
LEFT JOIN accounts.devices d USING (user_id, device_id)
"""

FOR_SIGNING = """
SELECT device_id, content FROM accounts.device_keys
WHERE user_id = $1 AND device_id = ANY($2::text[]) ORDER BY device_id FOR UPDATE
"""

SET_SIGNED = """
UPDATE accounts.device_keys k SET signed_content = given.content
FROM unnest($2::text[], $3::bytea[]) AS given (device_id, content)
WHERE k.user_id = $1 AND k.device_id = given.device_id
"""

# Rows go before their device does, in the transaction that deletes it.
DELETE_DATA = """
WITH gone AS (SELECT unnest($2::text[]) AS device_id),
one_time AS (DELETE FROM accounts.one_time_keys WHERE user_id = $1 AND device_id IN (SELECT device_id FROM gone)),
fallback AS (DELETE FROM accounts.fallback_keys WHERE user_id = $1 AND device_id IN (SELECT device_id FROM gone)),
inbox AS (DELETE FROM accounts.to_device WHERE user_id = $1 AND device_id IN (SELECT device_id FROM gone)),
transactions AS (
    DELETE FROM accounts.to_device_transactions WHERE user_id = $1 AND device_id IN (SELECT device_id FROM gone)
),
sliding AS (
    DELETE FROM accounts.sliding_connections WHERE user_id = $1 AND device_id IN (SELECT device_id FROM gone)
),
signatures AS (
    DELETE FROM accounts.key_signatures
    WHERE target_user_id = $1 AND target_key_id IN (SELECT device_id FROM gone)
)
DELETE FROM accounts.device_keys WHERE user_id = $1 AND device_id IN (SELECT device_id FROM gone) RETURNING device_id
"""


@dataclass(frozen=True, slots=True)
class ServedDeviceKeys:
    """Device keys as others see them: a JSON object with the owner's signatures, without `unsigned`."""

    user_id: UserId
    device_id: str
    content: bytes
    display_name: str | None


async def lock_device(tx: Transaction, user_id: UserId, device_id: str) -> None:
    """Hold off other uploads of this device until the transaction ends; taken before any row."""
    await tx.execute(LOCK_DEVICE, user_id, device_id)


async def find_uploaded(tx: Transaction, user_id: UserId, device_id: str) -> bytes | None:
    """The device keys as last uploaded."""
    content: bytes | None = await tx.fetchval(FIND, user_id, device_id)
    return content


async def set_keys(
    tx: Transaction, user_id: UserId, device_id: str, content: bytes, signed_content: bytes | None
) -> None:
    """Store what a device uploaded, and the same with the owner's other signatures if there are any."""
    await tx.execute(SET, user_id, device_id, content, signed_content)


async def list_of_users(tx: Transaction, user_ids: Sequence[UserId]) -> list[ServedDeviceKeys]:
    """The keys of all devices of these users; devices without keys are absent."""
    rows = await tx.fetch(OF_USERS, user_ids)
    return [ServedDeviceKeys(*row) for row in rows]


async def list_of_devices(tx: Transaction, devices: Sequence[tuple[UserId, str]]) -> list[ServedDeviceKeys]:
    """The keys of these (user, device) pairs; unknown ones are absent."""
    rows = await tx.fetch(OF_DEVICES, [device[0] for device in devices], [device[1] for device in devices])
    return [ServedDeviceKeys(*row) for row in rows]


async def list_for_signing(tx: Transaction, user_id: UserId, device_ids: Sequence[str]) -> dict[str, bytes]:
    """Lock these devices' keys against other signers and answer them as uploaded, by device ID."""
    rows = await tx.fetch(FOR_SIGNING, user_id, device_ids)
    return {row[0]: row[1] for row in rows}


async def set_signed(tx: Transaction, user_id: UserId, signed: dict[str, bytes | None]) -> None:
    """Replace what is served of these devices; None means that nothing but the upload is left."""
    await tx.execute(SET_SIGNED, user_id, list(signed), list(signed.values()))


async def delete_device_data(tx: Transaction, user_id: UserId, device_ids: Sequence[str]) -> int | None:
    """Delete keys, one-time and fallback keys, signatures and inboxes of devices that are about to go.

    Answers the new head of the device stream, for a DeviceWake after the COMMIT, or None when none of the devices had
    identity keys, so that nobody needs to hear of it. Safe to repeat.
    """
    rows = await tx.fetch(DELETE_DATA, user_id, device_ids)
    if not rows:
        return None
    return await device_changes.add_changes(tx, [DeviceChange(user_id, row[0]) for row in rows])

"""Devices of local users. Spec: C-S API §Device management."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class Device(NamedTuple):
    """A device; the last use is known to about a minute."""

    device_id: str
    display_name: str | None
    last_seen_ts: int | None
    last_seen_ip: str | None


class LastSeen(NamedTuple):
    """When (milliseconds since the epoch) and from where a device was last seen."""

    ts: int
    ip: str | None


_COLUMNS = "device_id, display_name, last_seen_ts, last_seen_ip"

_LIST = f"SELECT {_COLUMNS} FROM accounts.devices WHERE user_id = $1 ORDER BY created_ts, device_id"  # noqa: S608  constant text

_FIND = f"SELECT {_COLUMNS} FROM accounts.devices WHERE user_id = $1 AND device_id = $2"  # noqa: S608  constant text

_LIST_IDS = "SELECT device_id FROM accounts.devices WHERE user_id = $1 ORDER BY device_id FOR UPDATE"

_SET_DISPLAY_NAME = """
UPDATE accounts.devices d SET display_name = $3
WHERE d.user_id = $1 AND d.device_id = $2
RETURNING EXISTS (SELECT 1 FROM accounts.device_keys k WHERE k.user_id = $1 AND k.device_id = $2)
"""

# Tokens go with their device, by the foreign key.
_DELETE = """
WITH pushers AS (DELETE FROM accounts.pushers WHERE user_id = $1 AND device_id = ANY($2::text[]))
DELETE FROM accounts.devices WHERE user_id = $1 AND device_id = ANY($2::text[]) RETURNING device_id
"""

# Rows are locked in the order of the key, so that two processes' flushes cannot block each other.
_SET_LAST_SEEN = """
UPDATE accounts.devices d SET last_seen_ts = seen.ts, last_seen_ip = coalesce(seen.ip, d.last_seen_ip)
FROM (
    SELECT d.user_id, d.device_id, s.ts, s.ip
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS s (user_id, device_id, ts, ip)
    JOIN accounts.devices d USING (user_id, device_id)
    ORDER BY d.user_id, d.device_id FOR UPDATE OF d
) AS seen
WHERE d.user_id = seen.user_id AND d.device_id = seen.device_id AND coalesce(d.last_seen_ts, 0) < seen.ts
"""

# A device that was never seen counts from its login. One that sleeps is not used, and waits for just that.
_LIST_UNUSED = """
SELECT user_id, array_agg(device_id) FROM (
    SELECT user_id, device_id FROM accounts.devices d
    WHERE coalesce(last_seen_ts, created_ts) < $1
      AND NOT EXISTS (
          SELECT FROM accounts.dehydrated_devices s WHERE s.user_id = d.user_id AND s.device_id = d.device_id
      )
    LIMIT $2
) unused GROUP BY user_id
"""


async def list_devices(tx: Transaction, user_id: UserId) -> list[Device]:
    """All devices of a user, oldest first."""
    return [Device(*row) for row in await tx.fetch(_LIST, user_id)]


async def find_device(tx: Transaction, user_id: UserId, device_id: str) -> Device | None:
    """One device of a user."""
    row = await tx.fetchrow(_FIND, user_id, device_id)
    return None if row is None else Device(*row)


async def list_unused_since(tx: Transaction, before_ms: int, limit: int) -> dict[UserId, list[str]]:
    """Devices by user that were last used before that moment; at most `limit`."""
    return {UserId(row[0]): row[1] for row in await tx.fetch(_LIST_UNUSED, before_ms, limit)}


async def list_device_ids(tx: Transaction, user_id: UserId) -> list[str]:
    """The IDs of all devices of a user, locked until the transaction ends."""
    return [row[0] for row in await tx.fetch(_LIST_IDS, user_id)]


async def set_display_name(tx: Transaction, user_id: UserId, device_id: str, display_name: str) -> bool | None:
    """Rename a device.

    Returns:
        Whether it has identity keys, so that its name is part of what others see; None if there is no such device.
    """
    has_keys: bool | None = await tx.fetchval(_SET_DISPLAY_NAME, user_id, device_id, display_name)
    return has_keys


async def delete_devices(tx: Transaction, user_id: UserId, device_ids: Sequence[str]) -> list[str]:
    """Delete devices with their tokens and pushers; answers those that were there.

    Their keys and inboxes go before, by `device_keys.delete_device_data`.
    """
    return sorted(row[0] for row in await tx.fetch(_DELETE, user_id, list(device_ids)))


async def set_last_seen(tx: Transaction, seen: Mapping[tuple[UserId, str], LastSeen]) -> None:
    """Store when devices were last seen; older news than the stored is dropped."""
    keys = list(seen)
    await tx.execute(
        _SET_LAST_SEEN,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [seen[key].ts for key in keys],
        [seen[key].ip for key in keys],
    )

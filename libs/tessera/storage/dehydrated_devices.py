"""The device of a user that sleeps: it has keys and an inbox like others, and no session. Spec: MSC3814."""

from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class DehydratedDevice(NamedTuple):
    """A sleeping device; `data` is the JSON object that wakes it, which only its user can read."""

    device_id: str
    data: bytes


_FIND = "SELECT device_id, device_data FROM accounts.dehydrated_devices WHERE user_id = $1"

_ADD = """
WITH device AS (
    INSERT INTO accounts.devices (user_id, device_id, display_name, created_ts) VALUES ($1, $2, $4, $5)
    ON CONFLICT (user_id, device_id) DO NOTHING RETURNING device_id
)
INSERT INTO accounts.dehydrated_devices (user_id, device_id, device_data) SELECT $1, device_id, $3 FROM device
RETURNING true
"""


async def find_dehydrated(tx: Transaction, user_id: UserId) -> DehydratedDevice | None:
    """The user's sleeping device."""
    row = await tx.fetchrow(_FIND, user_id)
    return None if row is None else DehydratedDevice(*row)


async def add_dehydrated(
    tx: Transaction, user_id: UserId, device: DehydratedDevice, display_name: str | None, *, now_ms: int
) -> bool:
    """Add a device that sleeps; False if the user has one of this name already. The one before must be gone."""
    made = await tx.fetchval(_ADD, user_id, device.device_id, device.data, display_name, now_ms)
    return made is not None

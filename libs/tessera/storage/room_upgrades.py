"""Upgrades of rooms that are under way: the row is the debt, and what follows is named by ids made of it.

Spec: C-S API §Room upgrades; DESIGN.md section 2, invariant 8.
"""

from enum import StrEnum
from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction

STALE_SECONDS = 30  # without progress, before somebody else goes on with an upgrade
KEPT_SECONDS = 600  # how long a finished upgrade answers the same request again


class UpgradePhase(StrEnum):
    """What is to be done next, in this order."""

    CREATE = "create"
    COPY = "copy"
    TOMBSTONE = "tombstone"
    ALIASES = "aliases"
    RESTRICT = "restrict"
    SETTINGS = "settings"
    DONE = "done"


class RoomUpgrade(NamedTuple):
    """One upgrade. `create_pdu` is the signed create event of the new room; `seed` is in the ids of all commands."""

    old_room_id: RoomId
    sender: UserId
    new_version: str
    additional_creators: tuple[UserId, ...]
    new_room_id: RoomId
    seed: bytes
    create_pdu: bytes
    phase: UpgradePhase = UpgradePhase.CREATE

    def is_same_request(self, other: "RoomUpgrade") -> bool:
        """Whether the other was asked for by the same user in the same words."""
        return self[:4] == other[:4]


_COLUMNS = "old_room_id, sender, new_version, additional_creators, new_room_id, seed, create_pdu, phase"

_ADD = f"""
INSERT INTO accounts.room_upgrades AS u ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (old_room_id) DO UPDATE SET
    (sender, new_version, additional_creators, new_room_id, seed, create_pdu, phase, phase_at)
        = ($2, $3, $4, $5, $6, $7, $8, now())
WHERE u.phase = 'done'
RETURNING 1
"""  # noqa: S608  constant text

_FIND = f"SELECT {_COLUMNS} FROM accounts.room_upgrades WHERE old_room_id = $1"  # noqa: S608  constant text

_LIST_STALE = f"""
SELECT {_COLUMNS} FROM accounts.room_upgrades
WHERE phase <> 'done' AND phase_at < now() - interval '{STALE_SECONDS} seconds' AND old_room_id > $1
ORDER BY old_room_id LIMIT $2
"""  # noqa: S608  constant text

_ADVANCE = """
UPDATE accounts.room_upgrades SET phase = $4, phase_at = now() WHERE old_room_id = $1 AND seed = $2 AND phase = $3
"""

_DROP = "DELETE FROM accounts.room_upgrades WHERE old_room_id = $1 AND seed = $2 AND phase <> 'done'"

_SWEEP = f"""
DELETE FROM accounts.room_upgrades WHERE phase = 'done' AND phase_at < now() - interval '{KEPT_SECONDS} seconds'
"""  # noqa: S608  constant text


async def add_upgrade(tx: Transaction, upgrade: RoomUpgrade) -> bool:
    """Note a new upgrade; False if another of the room is under way."""
    return await tx.fetchval(_ADD, *upgrade) is not None


async def find_upgrade(tx: Transaction, old_room_id: RoomId) -> RoomUpgrade | None:
    """The upgrade of a room that is under way or was finished a short while ago."""
    row = await tx.fetchrow(_FIND, old_room_id)
    return None if row is None else _upgrade_of(row)


async def list_stale_upgrades(tx: Transaction, after: str = "", limit: int = 100) -> list[RoomUpgrade]:
    """Upgrades that nobody seems to be at, in the order of the rooms' IDs, after `after`."""
    return [_upgrade_of(row) for row in await tx.fetch(_LIST_STALE, after, limit)]


async def advance_upgrade(tx: Transaction, upgrade: RoomUpgrade, phase: UpgradePhase) -> RoomUpgrade:
    """A phase is over. Repeatable: nothing happens if the row is further or gone."""
    await tx.execute(_ADVANCE, upgrade.old_room_id, upgrade.seed, upgrade.phase, phase)
    return upgrade._replace(phase=phase)


async def drop_upgrade(tx: Transaction, upgrade: RoomUpgrade) -> None:
    """It will not happen. Repeatable."""
    await tx.execute(_DROP, upgrade.old_room_id, upgrade.seed)


async def sweep_upgrades(tx: Transaction) -> None:
    """Forget those that were finished KEPT_SECONDS ago."""
    await tx.execute(_SWEEP)


def _upgrade_of(row: tuple[object, ...]) -> RoomUpgrade:
    upgrade = RoomUpgrade(*row)  # type: ignore[arg-type]  # a row has what the columns name
    return upgrade._replace(additional_creators=tuple(upgrade.additional_creators), phase=UpgradePhase(upgrade.phase))

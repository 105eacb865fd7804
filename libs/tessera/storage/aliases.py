"""Room aliases of this server: reserved -> bound -> released.

createRoom reserves the alias before it commands the room, binds it once the room is there, and
releases it if the room was refused. A reservation whose gateway died lapses by itself.

Spec: C-S API §Room aliases.
"""

from typing import NamedTuple

from matrixcore.identifiers import RoomAlias, RoomId, UserId
from tessera.storage.database import Transaction


class BoundAlias(NamedTuple):
    """An alias that leads to a room."""

    alias: RoomAlias
    room_id: RoomId
    creator: UserId


_RESERVE = """
INSERT INTO accounts.aliases AS a (alias, creator, state, reserved_until_ts, created_ts)
VALUES ($1, $2, 'reserved', $3, $4)
ON CONFLICT (alias) DO UPDATE SET
    creator = EXCLUDED.creator, reserved_until_ts = EXCLUDED.reserved_until_ts, created_ts = EXCLUDED.created_ts
WHERE a.state = 'reserved' AND a.reserved_until_ts <= $4
RETURNING 1
"""

# A lapsed reservation that nobody else took can still be bound: the room is there.
_BIND = """
UPDATE accounts.aliases SET state = 'bound', room_id = $3, reserved_until_ts = NULL
WHERE alias = $1 AND creator = $2 AND (state = 'reserved' OR room_id = $3)
RETURNING 1
"""

_ADD = """
INSERT INTO accounts.aliases AS a (alias, creator, state, room_id, created_ts) VALUES ($1, $2, 'bound', $3, $4)
ON CONFLICT (alias) DO UPDATE SET
    creator = EXCLUDED.creator, state = 'bound', room_id = EXCLUDED.room_id, reserved_until_ts = NULL,
    created_ts = EXCLUDED.created_ts
WHERE a.state = 'reserved' AND a.reserved_until_ts <= $4
RETURNING 1
"""

_RELEASE_RESERVATION = "DELETE FROM accounts.aliases WHERE alias = $1 AND creator = $2 AND state = 'reserved'"

_DELETE = "DELETE FROM accounts.aliases WHERE alias = $1 AND state = 'bound' AND room_id = $2 RETURNING 1"

_MOVE = "UPDATE accounts.aliases SET room_id = $2 WHERE room_id = $1 AND state = 'bound' RETURNING alias"

_FIND = "SELECT alias, room_id, creator FROM accounts.aliases WHERE alias = $1 AND state = 'bound'"

_LIST = "SELECT alias, room_id, creator FROM accounts.aliases WHERE room_id = $1 AND state = 'bound' ORDER BY alias"


async def reserve(tx: Transaction, alias: RoomAlias, creator: UserId, *, until_ts: int, now_ms: int) -> bool:
    """Hold an alias for a room that is being made, until `until_ts`; False if it is taken."""
    return await tx.fetchval(_RESERVE, alias, creator, until_ts, now_ms) is not None


async def bind(tx: Transaction, alias: RoomAlias, creator: UserId, room_id: RoomId) -> bool:
    """Give a reserved alias its room; False if it lapsed and somebody else has it. Repeatable."""
    return await tx.fetchval(_BIND, alias, creator, room_id) is not None


async def release(tx: Transaction, alias: RoomAlias, creator: UserId) -> None:
    """Give a reservation up. Repeatable."""
    await tx.execute(_RELEASE_RESERVATION, alias, creator)


async def add_alias(tx: Transaction, alias: RoomAlias, room_id: RoomId, creator: UserId, *, now_ms: int) -> bool:
    """Make an alias for a room that exists; False if it is taken."""
    return await tx.fetchval(_ADD, alias, creator, room_id, now_ms) is not None


async def find_alias(tx: Transaction, alias: RoomAlias) -> BoundAlias | None:
    """Where an alias leads; a reserved one leads nowhere."""
    row = await tx.fetchrow(_FIND, alias)
    return None if row is None else BoundAlias(*row)


async def list_aliases(tx: Transaction, room_id: RoomId) -> list[BoundAlias]:
    """All local aliases of a room, by name."""
    return [BoundAlias(*row) for row in await tx.fetch(_LIST, room_id)]


async def delete_alias(tx: Transaction, alias: RoomAlias, room_id: RoomId) -> bool:
    """Release an alias of this room; False if it does not lead there."""
    return await tx.fetchval(_DELETE, alias, room_id) is not None


async def move_aliases(tx: Transaction, old_room_id: RoomId, new_room_id: RoomId) -> list[RoomAlias]:
    """Let all local aliases of a room lead to its successor; answers them. Repeatable."""
    return [RoomAlias(row[0]) for row in await tx.fetch(_MOVE, old_room_id, new_room_id)]

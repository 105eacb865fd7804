"""What is read of rooms in which this server has members, to let users of other servers in and out.

Spec: S-S API §Joining Rooms, §Knocking upon a room, §Leaving Rooms (Rejecting Invites).
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.state_loading import find_places, load_state_at

_FIND = """
SELECT r.room_version, r.forward_extremities, r.depth FROM rooms.rooms r
WHERE r.room_id = $1
  AND EXISTS (SELECT FROM rooms.room_servers s WHERE s.room_id = $1 AND s.server_name = $2 AND s.joined_count > 0)
"""
_LIST_OF_SERVER = """
SELECT room_id FROM rooms.room_servers WHERE room_id = ANY($1::text[]) AND server_name = $2 AND joined_count > 0
"""
_LIST_SERVERS = """
SELECT server_name FROM rooms.room_servers WHERE room_id = $1 AND joined_count > 0 ORDER BY server_name
"""
_LIST_PDUS = "SELECT event_id, pdu FROM rooms.events WHERE room_id = $1 AND event_id = ANY($2::text[])"
_LIST_HEROES = """
SELECT event_id FROM rooms.current_state
WHERE room_id = $1 AND type = 'm.room.member' AND membership IN ('join', 'invite') ORDER BY anchor, sub LIMIT 6
"""


class RoomTips(NamedTuple):
    """Where the next event of a room goes."""

    room_version: str
    forward_extremities: list[EventId]
    depth: int


async def find_tips(tx: Transaction, room_id: RoomId, server_name: ServerName) -> RoomTips | None:
    """The forward extremities of a room in which this server has members; None if it has none there."""
    row = await tx.fetchrow(_FIND, room_id, server_name)
    return None if row is None else RoomTips(*row)


async def list_rooms_of_server(tx: Transaction, room_ids: Sequence[RoomId], server_name: ServerName) -> set[RoomId]:
    """Those of the rooms in which a server has members."""
    return {RoomId(row[0]) for row in await tx.fetch(_LIST_OF_SERVER, list(room_ids), server_name)}


async def list_joined_servers(tx: Transaction, room_id: RoomId) -> list[ServerName]:
    """All servers with members in the room, ours too."""
    return [ServerName(row[0]) for row in await tx.fetch(_LIST_SERVERS, room_id)]


async def load_pdus(tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId]) -> dict[EventId, bytes]:
    """The PDUs of those of the events that are stored."""
    return {row[0]: row[1] for row in await tx.fetch(_LIST_PDUS, room_id, list(event_ids))}


async def list_hero_events(tx: Transaction, room_id: RoomId) -> list[EventId]:
    """The member events of those after whom a room without a name is called."""
    return [EventId(row[0]) for row in await tx.fetch(_LIST_HEROES, room_id)]


async def load_state_before(tx: Transaction, room_id: RoomId, event_id: EventId) -> dict[StateKey, EventId] | None:
    """The whole state before an event; None if it is not here or has no place in the room."""
    place = (await find_places(tx, room_id, [event_id])).get(event_id)
    if place is None or place.order is None:
        return None
    state = await load_state_at(tx, room_id, OrderKey(*place.base))
    for key, changed in place.delta.items():
        if changed is None:
            state.pop(key, None)
        else:
            state[key] = changed
    return state

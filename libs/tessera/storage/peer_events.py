"""Events as other servers ask for them: any that are stored, with what decides whether a server may see them.

Spec: S-S API §Retrieving events, §Backfilling and retrieving missing events.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from matrixcore.canonical_json import parse_exact_json
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction

SLICE = 1_000  # events of one query


class PeerEvent(NamedTuple):
    """A stored event of the room's DAG or beside it.

    `servers` had members before the event; it is empty where the state before the event is not that of the room's
    order (`forked`), and for events without a place.
    """

    event_id: EventId
    room_id: RoomId
    anchor: int | None
    sub: int | None
    outlier: bool
    rejected: bool
    forked: bool
    type: str
    state_key: str | None
    sender: UserId
    membership: str | None
    depth: int
    history_visibility: str
    servers: list[ServerName]
    pdu: bytes

    @property
    def order(self) -> OrderKey | None:
        """Its place in the room."""
        return None if self.anchor is None or self.sub is None else OrderKey(self.anchor, self.sub)

    @property
    def prev_events(self) -> list[EventId]:
        """What it stands on."""
        return _references(self.pdu, "prev_events")


class MemberStep(NamedTuple):
    """From here on a user of a server has this membership."""

    order: OrderKey
    user_id: str
    membership: str | None


_COLUMNS = """event_id, room_id, anchor, sub, outlier, rejected IS NOT NULL, forked, type, state_key, sender,
    membership, depth, history_visibility, servers, pdu"""

# Constant text is put together here; values are always parameters.
_LIST = f"SELECT {_COLUMNS} FROM rooms.events WHERE room_id = $1 AND event_id = ANY($2::text[])"  # noqa: S608  constant text
_LIST_ANYWHERE = f"SELECT {_COLUMNS} FROM rooms.events WHERE event_id = $1 LIMIT 10"  # noqa: S608  constant text
_LIST_BELOW = f"""
SELECT {_COLUMNS} FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL AND (anchor, sub) < ($2, $3)
ORDER BY anchor DESC, sub DESC LIMIT $4
"""  # noqa: S608  constant text
_LIST_MEMBER_STEPS = """
SELECT anchor, sub, state_key, membership FROM rooms.state_history
WHERE room_id = $1 AND type = 'm.room.member' AND right(state_key, length($2) + 1) = ':' || $2
ORDER BY anchor, sub
"""
_LIST_PDUS = "SELECT event_id, pdu FROM rooms.events WHERE room_id = $1 AND event_id = ANY($2::text[])"


async def list_events(tx: Transaction, room_id: RoomId, event_ids: Iterable[EventId]) -> dict[EventId, PeerEvent]:
    """Those of a room's events that are stored."""
    return {row[0]: PeerEvent(*row) for row in await tx.fetch(_LIST, room_id, list(event_ids))}


async def list_anywhere(tx: Transaction, event_id: EventId) -> list[PeerEvent]:
    """The events of this ID in the rooms of a shard: one, unless an old room version let servers choose it twice."""
    return [PeerEvent(*row) for row in await tx.fetch(_LIST_ANYWHERE, event_id)]


async def list_below(tx: Transaction, room_id: RoomId, order: OrderKey, limit: int) -> list[PeerEvent]:
    """The events below a place of the room's order, the newest first."""
    return [PeerEvent(*row) for row in await tx.fetch(_LIST_BELOW, room_id, *order, limit)]


async def list_member_steps(tx: Transaction, room_id: RoomId, server: ServerName) -> list[MemberStep]:
    """All memberships that users of a server ever had, in the room's order."""
    rows = await tx.fetch(_LIST_MEMBER_STEPS, room_id, server)
    return [MemberStep(OrderKey(row[0], row[1]), row[2], row[3]) for row in rows]


async def list_auth_chain(
    tx: Transaction, room_id: RoomId, event_ids: Iterable[EventId], limit: int
) -> dict[EventId, None]:
    """The IDs of all events that some events cite, and of those that these cite, and so on.

    Args:
        limit: as soon as there are more, the rest is left out.
    """
    chain: dict[EventId, None] = {}
    seen = set(event_ids)
    level = list(seen)
    while level and len(chain) < limit:
        cited: dict[EventId, None] = {}
        for start in range(0, len(level), SLICE):
            for row in await tx.fetch(_LIST_PDUS, room_id, level[start : start + SLICE]):
                cited.update(dict.fromkeys(_references(row[1], "auth_events")))
        chain.update(cited)
        level = [event_id for event_id in cited if event_id not in seen]
        seen.update(level)
    return chain


async def list_pdus(tx: Transaction, room_id: RoomId, event_ids: Sequence[EventId]) -> dict[EventId, bytes]:
    """The PDUs of those of the events that are stored."""
    return {row[0]: row[1] for row in await tx.fetch(_LIST_PDUS, room_id, list(event_ids))}


def _references(pdu: bytes, key: str) -> list[EventId]:
    try:
        cited = orjson.loads(pdu)[key]
    except orjson.JSONDecodeError:  # numbers that only rooms of versions 1 to 5 may have
        cited = parse_exact_json(pdu)[key]
    return [EventId(one if isinstance(one, str) else one[0]) for one in cited]

"""The state of a room as answers of other servers' joins have it, written while it is read.

Nothing is held whole but the IDs: the events come and go a slice at a time.

Spec: S-S API §Joining Rooms, PUT /_matrix/federation/v2/send_join (`omit_members` too).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import orjson

from matrixcore.canonical_json import parse_exact_json
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey
from tessera.storage.database import Database
from tessera.storage.resident_rooms import list_hero_events, load_pdus, load_state_before

SLICE = 300  # events
MAX_AUTH_CHAIN = 200_000
_MEMBER = "m.room.member"
# In canonical order the auth events come first, unless the event has a key that nobody knows.
_AUTH_EVENTS = re.compile(rb'\{"auth_events":\[(?:"[^"\\]*",?)*\]')
_NAMING: tuple[StateKey, ...] = (("m.room.name", ""), ("m.room.canonical_alias", ""))


@dataclass(frozen=True, slots=True)
class RoomState:
    """The state before an event.

    Attributes:
        heroes: member events of those after whom the room is called; empty if it has a name.
    """

    room_id: RoomId
    events: dict[StateKey, EventId]
    heroes: frozenset[EventId]

    def members_last(self) -> list[EventId]:
        """All of it, what members cite first: who joins can judge them as they come."""
        return [self.events[key] for key in sorted(self.events, key=lambda key: key[0] == _MEMBER)]

    def without_members(self) -> list[EventId]:
        """What is left of it when members are omitted."""
        return [e for key, e in self.events.items() if key[0] != _MEMBER or e in self.heroes]


async def find_state_before(database: Database, event: Event) -> RoomState | None:
    """The state before an event that is in the room."""
    async with database.reading() as tx:
        events = await load_state_before(tx, event.room_id, event.event_id)
        if events is None:
            return None
        is_named = any(key in events for key in _NAMING)
        heroes = frozenset() if is_named else frozenset(await list_hero_events(tx, event.room_id))
    return RoomState(event.room_id, events, heroes)


async def write_state(
    database: Database,
    state: RoomState,
    event: Event,
    server_name: ServerName,
    servers: Sequence[ServerName],
    omit_members: bool,
    *,
    as_pair: bool = False,
) -> AsyncIterator[bytes]:
    """The body of the answer to send_join, in pieces.

    Args:
        servers: in the room, for `omit_members`.
        as_pair: the form of version 1.
    """
    wanted = state.without_members() if omit_members else state.members_last()
    head = {"origin": server_name, "members_omitted": omit_members, "event": orjson.Fragment(event.pdu)}
    if omit_members:
        head["servers_in_room"] = list(servers)
    yield (b"[200," if as_pair else b"") + orjson.dumps(head)[:-1] + b',"state":['
    cited: dict[EventId, None] = dict.fromkeys(event.auth_events)
    is_first = True
    async for pdus in _read(database, state.room_id, wanted, cited):
        yield (b"" if is_first else b",") + pdus
        is_first = False
    yield b'],"auth_chain":['
    # With omit_members what stands in the state need not be said again.
    told = set(wanted) if omit_members else set()
    pending, is_first = list(cited), True
    seen = set(pending)
    while pending and len(seen) <= MAX_AUTH_CHAIN:
        slice_, pending = pending[:SLICE], pending[SLICE:]
        further: dict[EventId, None] = {}
        shown = [event_id for event_id in slice_ if event_id not in told]
        async for pdus in _read(database, state.room_id, shown, further):
            yield (b"" if is_first else b",") + pdus
            is_first = False
        # What those cite that stand in the state is known from there.
        fresh = [event_id for event_id in further if event_id not in seen]
        seen.update(fresh)
        pending += fresh
    yield b"]}" + (b"]" if as_pair else b"")


async def _read(
    database: Database, room_id: RoomId, event_ids: Sequence[EventId], cited: dict[EventId, None]
) -> AsyncIterator[bytes]:
    """PDUs separated by commas; adds what they cite."""
    for start in range(0, len(event_ids), SLICE):
        async with database.reading() as tx:
            found = await load_pdus(tx, room_id, event_ids[start : start + SLICE])
        if found:
            cited.update(dict.fromkeys(await asyncio.to_thread(_auth_events_of, list(found.values()))))
            yield b",".join(found.values())


def _auth_events_of(pdus: Iterable[bytes]) -> list[EventId]:
    cited: dict[EventId, None] = {}
    for text in dict.fromkeys(map(_cited_text, pdus)):
        for one in parse_exact_json(text)["auth_events"]:
            cited[EventId(one[0] if isinstance(one, list) else one)] = None
    return list(cited)


def _cited_text(pdu: bytes) -> bytes:
    """The auth events as they stand in a PDU, which many members have in common; the PDU if another key is first."""
    found = _AUTH_EVENTS.match(pdu)
    return pdu if found is None else found[0] + b"}"

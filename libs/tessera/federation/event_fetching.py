"""Events of a room from the other servers in it, checked as far as it goes without the room's past.

Spec: S-S API §Retrieving events, §Backfilling and retrieving missing events, §Retrieving event authorization
information.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import EventId, RoomId, ServerName
from matrixcore.room_versions import RoomVersionRules
from tessera.federation.client import FederationClient, endpoint
from tessera.federation.errors import PeerAnsweredBadly, PeerError
from tessera.federation.keyring import Keyring

log = structlog.get_logger(__name__)

V1 = "/_matrix/federation/v1/"
MAX_EVENTS = 200  # of one answer about history; more are passed over
MAX_STATE = 100_000  # events of one state, or of its auth chain
MAX_STATE_BYTES = 128 << 20
SIDE_BY_SIDE = 8
TIMEOUT_SECONDS = 20.0
STATE_TIMEOUT_SECONDS = 60.0


class ToldState(NamedTuple):
    """The state before an event by its events' IDs, as another server has it."""

    state: tuple[EventId, ...]
    auth_chain: tuple[EventId, ...]


class EventFetcher:
    """Asks other servers for events. What is wrongly signed, of another room or no event at all is left out.

    Methods that ask one server raise PeerError.
    """

    def __init__(self, client: FederationClient, keyring: Keyring) -> None:
        self._client = client
        self._keyring = keyring

    async def missing_events(
        self,
        server: ServerName,
        room_id: RoomId,
        rules: RoomVersionRules,
        *,
        latest: Sequence[EventId],
        earliest: Sequence[EventId],
        limit: int,
    ) -> list[Event]:
        """Events between those that we have and those that we got."""
        path = endpoint(V1 + "get_missing_events/{}", room_id)
        body = {"earliest_events": list(earliest), "latest_events": list(latest), "limit": limit, "min_depth": 0}
        answer = await self._client.post(server, path, body, timeout_s=TIMEOUT_SECONDS)
        return await self.verified(room_id, rules, _pdus_of(answer, "events", MAX_EVENTS))

    async def backfill(
        self, server: ServerName, room_id: RoomId, rules: RoomVersionRules, above: Sequence[EventId], limit: int
    ) -> list[Event]:
        """These events and those before them."""
        query = {"v": list(above), "limit": str(limit)}
        answer = await self._client.get(server, endpoint(V1 + "backfill/{}", room_id), query, timeout_s=TIMEOUT_SECONDS)
        return await self.verified(room_id, rules, _pdus_of(answer, "pdus", MAX_EVENTS))

    async def state_ids(self, server: ServerName, room_id: RoomId, event_id: EventId) -> ToldState:
        """The state before an event."""
        path = endpoint(V1 + "state_ids/{}", room_id)
        answer = await self._client.get(server, path, {"event_id": event_id}, timeout_s=STATE_TIMEOUT_SECONDS)
        return ToldState(_ids_of(answer, "pdu_ids"), _ids_of(answer, "auth_chain_ids"))

    async def state(
        self, server: ServerName, room_id: RoomId, rules: RoomVersionRules, event_id: EventId
    ) -> list[Event]:
        """The events of the state before an event and of its auth chain."""
        path = endpoint(V1 + "state/{}", room_id)
        answer = await self._client.get(
            server, path, {"event_id": event_id}, timeout_s=STATE_TIMEOUT_SECONDS, max_bytes=MAX_STATE_BYTES
        )
        pdus = [*_pdus_of(answer, "pdus", MAX_STATE), *_pdus_of(answer, "auth_chain", MAX_STATE)]
        return await self.verified(room_id, rules, pdus)

    async def auth_chain(
        self, server: ServerName, room_id: RoomId, rules: RoomVersionRules, event_id: EventId
    ) -> list[Event]:
        """The auth chain of an event."""
        path = endpoint(V1 + "event_auth/{}/{}", room_id, event_id)
        answer = await self._client.get(server, path, timeout_s=TIMEOUT_SECONDS)
        return await self.verified(room_id, rules, _pdus_of(answer, "auth_chain", 5_000))

    async def timestamp_to_event(
        self, server: ServerName, room_id: RoomId, ts: int, *, backwards: bool
    ) -> tuple[EventId, int]:
        """The event of a server that is nearest to a time, and its own time."""
        query = {"ts": str(ts), "dir": "b" if backwards else "f"}
        path = endpoint(V1 + "timestamp_to_event/{}", room_id)
        answer = await self._client.get(server, path, query, timeout_s=TIMEOUT_SECONDS)
        event_id, at = answer.get("event_id"), answer.get("origin_server_ts")
        if not isinstance(event_id, str) or not 0 < len(event_id) <= 255 or type(at) is not int:
            raise PeerAnsweredBadly("no event and time")
        return EventId(event_id), at

    async def events(
        self, servers: Sequence[ServerName], room_id: RoomId, rules: RoomVersionRules, event_ids: Collection[EventId]
    ) -> dict[EventId, Event]:
        """Those of the events that one of the servers has, asked in turn; each event by itself."""
        found: dict[EventId, Event] = {}
        for server in servers:
            wanted = [event_id for event_id in event_ids if event_id not in found]
            if not wanted:
                break
            pdus = await self._single_events(server, wanted)
            for event in await self.verified(room_id, rules, pdus):
                if event.event_id in wanted:
                    found[event.event_id] = event
        return found

    async def _single_events(self, server: ServerName, event_ids: Sequence[EventId]) -> list[Mapping[str, Any]]:
        """What a server answers for each of the events; nothing more once it fails to answer at all."""
        pdus: list[Mapping[str, Any]] = []
        waiting = iter(event_ids)

        async def ask() -> None:
            for event_id in waiting:
                try:
                    path = endpoint(V1 + "event/{}", event_id)
                    answer = await self._client.get(server, path, timeout_s=TIMEOUT_SECONDS)
                except PeerError as error:
                    log.info("event not fetched", server=server, event_id=event_id, reason=str(error))
                    if not getattr(error, "status", 0):
                        return
                else:
                    pdus.extend(_pdus_of(answer, "pdus", 1))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(SIDE_BY_SIDE, len(event_ids))):
                tasks.create_task(ask())
        return pdus

    async def verified(
        self, room_id: RoomId, rules: RoomVersionRules, pdus: Iterable[Mapping[str, Any]]
    ) -> list[Event]:
        """Those that are rightly signed events of the room, each once."""
        events: dict[EventId, Event] = {}
        for number, pdu in enumerate(pdus):
            if number % SIDE_BY_SIDE == 0:
                await asyncio.sleep(0)  # parsing a large state takes a while
            try:
                event = parse_event(pdu, rules)
            except InvalidEvent:
                continue
            if event.room_id == room_id:
                events[event.event_id] = event
        verdicts = await self._keyring.verify_events(list(events.values()), rules)
        return [event for event, wrong in zip(events.values(), verdicts, strict=True) if wrong is None]


def _pdus_of(answer: Mapping[str, Any], key: str, limit: int) -> list[Mapping[str, Any]]:
    pdus = answer.get(key)
    if not isinstance(pdus, list):
        raise PeerAnsweredBadly(f"no {key}")
    return [pdu for pdu in pdus[:limit] if isinstance(pdu, Mapping)]


def _ids_of(answer: Mapping[str, Any], key: str) -> tuple[EventId, ...]:
    ids = answer.get(key)
    if not isinstance(ids, list) or not all(isinstance(one, str) and 0 < len(one) <= 255 for one in ids):
        raise PeerAnsweredBadly(f"no {key}")
    if len(ids) > MAX_STATE:
        raise PeerAnsweredBadly(f"too many {key}")
    return tuple(dict.fromkeys(EventId(one) for one in ids if "\0" not in one))

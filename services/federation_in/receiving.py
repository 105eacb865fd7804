"""PDUs of other servers: checked as far as it goes without the room's past, and stored for the room's writer.

What is wrong with a PDU by itself is answered at once; what its room says of it shows when the writer takes it in.

Spec: S-S API §Checks performed on receipt of a PDU, §Server Access Control Lists.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from matrixcore.event_hashes import compute_event_id
from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import EventId, RoomId, ServerName
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.clock import Clock
from tessera.federation.acl import is_server_allowed
from tessera.federation.keyring import Keyring
from tessera.http.errors import Unavailable
from tessera.storage import inbox
from tessera.storage.inbox import NewInboxRow
from tessera.storage.partitions import PartitionMoved
from tessera.storage.peer_rooms import PeerRoom, list_peer_rooms
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

MAX_WAITING = 2_000  # PDUs of one server that may lie in the inbox for one room


class InboxNames(NamedTuple):
    """Rows of the inbox that the writer of their room is to be told of."""

    partition: int
    room_id: RoomId
    inbox_ids: tuple[int, ...]


@dataclass(slots=True)
class Received:
    """What became of some PDUs.

    Attributes:
        results: event ID -> why it was refused, None if it was taken. A PDU without a room that is known here has no
            result, since what its ID would be depends on the room's version.
        unknown: PDUs of rooms in which this server has nobody.
    """

    results: dict[EventId, str | None] = field(default_factory=dict)
    names: list[InboxNames] = field(default_factory=list)
    unknown: list[Mapping[str, Any]] = field(default_factory=list)


class PduReceiver:
    """Takes the PDUs of a transaction into the inboxes of their rooms' shards."""

    def __init__(self, server_name: ServerName, shards: RoomShards, keyring: Keyring, clock: Clock) -> None:
        self._server_name = server_name
        self._shards = shards
        self._keyring = keyring
        self._clock = clock

    async def receive(self, origin: ServerName, pdus: Sequence[object]) -> Received:
        """Check PDUs and store those that pass; one commit for each shard. Doing it again does no harm.

        Raises:
            Unavailable: a room's partition is being moved, or too much of this server lies undone for a room.
            DatabaseUnavailable
        """
        received = Received()
        by_room: dict[RoomId, list[Mapping[str, Any]]] = {}
        for pdu in pdus:
            if isinstance(pdu, Mapping) and isinstance(room_id := pdu.get("room_id"), str) and len(room_id) <= 255:
                by_room.setdefault(RoomId(room_id), []).append(pdu)
        rooms = await self._find_rooms(origin, by_room)
        parsed: list[tuple[PeerRoom, list[Event]]] = []
        for room_id, its in by_room.items():
            room = rooms.get(room_id)
            if room is None or not room.is_joined:
                received.unknown += its
            elif not is_server_allowed(room.acl, origin):
                _refuse_all(its, room, "Server access denied by the room's ACL", received)
            else:
                parsed.append((room, list(_parse_all(its, room, received))))
        # Side by side: the keys of a dead server are waited for once, not once a room.
        verified = await asyncio.gather(*(self._verified(room, events, received) for room, events in parsed))
        passed = [(room, events) for (room, _), events in zip(parsed, verified, strict=True) if events]
        await self._store(origin, passed, received)
        return received

    async def _find_rooms(self, origin: ServerName, room_ids: Iterable[RoomId]) -> dict[RoomId, PeerRoom]:
        found: dict[RoomId, PeerRoom] = {}
        for shard, its in self._shards.group_rooms(room_ids).items():
            async with self._shards.databases[shard].reading() as tx:
                found |= await list_peer_rooms(tx, its, self._server_name, origin, waiting_limit=MAX_WAITING)
        if any(room.waiting >= MAX_WAITING for room in found.values()):
            raise Unavailable("Too many of your events wait for their ancestors", retry_after_ms=30_000)
        return found

    async def _verified(self, room: PeerRoom, events: Sequence[Event], received: Received) -> list[Event]:
        verdicts = await self._keyring.verify_events(events, ROOM_VERSIONS[room.room_version])
        passed: list[Event] = []
        for event, wrong in zip(events, verdicts, strict=True):
            if wrong is None:
                passed.append(event)
                received.results[event.event_id] = None
            else:
                log.info("dropped a PDU", room_id=event.room_id, event_id=event.event_id, reason=str(wrong))
                received.results[event.event_id] = str(wrong)
        return passed

    async def _store(
        self, origin: ServerName, passed: Sequence[tuple[PeerRoom, list[Event]]], received: Received
    ) -> None:
        now_ms = self._clock.now_ms()
        by_shard: dict[str, list[NewInboxRow]] = {}
        for room, events in passed:
            rows = by_shard.setdefault(self._shards.shard_of(room.partition), [])
            rows += [
                NewInboxRow(room.partition, room.room_id, origin, event.event_id, event.pdu, now_ms)
                for event in {event.event_id: event for event in events}.values()
            ]
        for shard, rows in by_shard.items():
            try:
                async with self._shards.databases[shard].reading() as tx:
                    ids = await inbox.add(tx, rows)
            except PartitionMoved:
                raise Unavailable("The room is being moved") from None
            received.names += _names_of(rows, ids)


def _parse_all(pdus: Iterable[Mapping[str, Any]], room: PeerRoom, received: Received) -> Iterable[Event]:
    rules = ROOM_VERSIONS[room.room_version]
    for pdu in pdus:
        try:
            event = parse_event(pdu, rules)
        except InvalidEvent as error:
            _refuse(pdu, room, error.reason, received)
            continue
        if event.room_id == room.room_id and event.prev_events:
            yield event
        else:
            received.results[event.event_id] = "The event is not part of the room's history"


def _refuse_all(pdus: Iterable[Mapping[str, Any]], room: PeerRoom, reason: str, received: Received) -> None:
    for pdu in pdus:
        _refuse(pdu, room, reason, received)


def _refuse(pdu: Mapping[str, Any], room: PeerRoom, reason: str, received: Received) -> None:
    """Answer why a PDU is not taken, if it can be told which one it is."""
    try:
        event_id = compute_event_id(pdu, ROOM_VERSIONS[room.room_version])
    except (KeyError, TypeError, ValueError, AttributeError):  # whatever it is, it has no event ID
        return
    if isinstance(event_id, str) and len(event_id) <= 255:
        received.results[event_id] = reason


def _names_of(rows: Sequence[NewInboxRow], inbox_ids: Sequence[int]) -> list[InboxNames]:
    by_room: dict[tuple[int, RoomId], list[int]] = {}
    for row, inbox_id in zip(rows, inbox_ids, strict=True):
        by_room.setdefault((row.partition, row.room_id), []).append(inbox_id)
    return [InboxNames(partition, room_id, tuple(ids)) for (partition, room_id), ids in by_room.items()]

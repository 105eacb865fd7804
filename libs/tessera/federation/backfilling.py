"""Bringing in a room's history from before what is here: other servers are asked, the room's writer judges and places.

Several readers of one room wait for the same fetch; a stretch that nobody gives is left alone for a while.

Spec: S-S API §Backfilling and retrieving missing events; DESIGN.md section 4.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import orjson
import structlog

from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.commands import Command, ReceivePdus
from tessera.federation.errors import PeerError
from tessera.federation.event_fetching import EventFetcher
from tessera.federation.told_states import fetch_told_state
from tessera.ids import IdSource
from tessera.records import OrderKey
from tessera.room_commands import CommandUnanswered, RoomCommands
from tessera.storage import backward_extremities, fetches, inbox
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.fetches import FetchedRoom
from tessera.storage.inbox import NewInboxRow
from tessera.storage.partitions import PartitionMoved
from tessera.storage.peer_events import list_pdus
from tessera.storage.peer_rooms import list_servers
from tessera.storage.resident_rooms import load_state_before
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

WAIT_SECONDS = 10.0  # that a reader waits; the fetch goes on
FETCH_SECONDS = 60.0
COMMAND_SECONDS = 20.0
EVENTS = 100  # of one fetch
MAX_SERVERS = 5
MAX_STARTS = 20
MAX_TOPS = 10  # branches whose states are asked for
MAX_RUNNING = 32  # rooms at once
ROWS_OF_A_COMMAND = 400
BARREN_SECONDS = 600.0  # a stretch that nobody gave is not asked for again
WHOLE_SECONDS = 30.0  # a room without backward extremities is not looked at again
MAX_REMEMBERED = 10_000
NOBODY = UserId("")


class Backfiller:
    """Fetches history for rooms, one fetch a room at a time.

    Args:
        commands: whose outcomes are waited for.
    """

    def __init__(
        self,
        server_name: ServerName,
        shards: RoomShards,
        fetcher: EventFetcher,
        commands: RoomCommands,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._server_name = server_name
        self._shards = shards
        self._fetcher = fetcher
        self._commands = commands
        self._clock = clock
        self._ids = ids
        self._running: dict[RoomId, asyncio.Task[bool]] = {}
        self._whole: BoundedCache[RoomId, float] = BoundedCache(MAX_REMEMBERED)
        self._barren: BoundedCache[tuple[RoomId, EventId], float] = BoundedCache(MAX_REMEMBERED)

    async def close(self) -> None:
        """End what runs."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def extend(self, room_id: RoomId, low: OrderKey, high: OrderKey) -> bool:
        """Fetch history where a stretch of the room's order breaks off; whether there may be more of it now.

        Both ends belong to the stretch. Nobody waits longer than `WAIT_SECONDS`.

        Raises:
            DatabaseUnavailable
        """
        now = self._clock.monotonic()
        if now < (self._whole.get(room_id) or 0.0):
            return False
        database = self._shards.of_room(room_id)
        async with database.reading() as tx:
            ends = await backward_extremities.list_between(tx, room_id, low, high, MAX_STARTS)
            if not ends and not await backward_extremities.has_any(tx, room_id):
                self._whole[room_id] = now + WHOLE_SECONDS
        ends = {event_id: at for event_id, at in ends.items() if now >= (self._barren.get((room_id, event_id)) or 0.0)}
        if not ends:
            return False
        task = self._running.get(room_id)
        if task is None:
            if len(self._running) >= MAX_RUNNING:
                return False
            task = self._running[room_id] = asyncio.create_task(self._fetch_quietly(room_id, database, ends))
            task.add_done_callback(lambda _: self._running.pop(room_id, None))
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                return await asyncio.shield(task)
        return False

    async def find_gap(self, room_id: RoomId, low: OrderKey, high: OrderKey) -> OrderKey | None:
        """The place of the lowest event above the newest gap of a stretch that is being filled, or can be.

        Both ends belong to the stretch. What nobody gives is no gap.

        Raises:
            DatabaseUnavailable
        """
        now = self._clock.monotonic()
        if now < (self._whole.get(room_id) or 0.0):
            return None
        async with self._shards.of_room(room_id).reading() as tx:
            ends = await backward_extremities.list_between(tx, room_id, low, high, MAX_STARTS)
        places = [at for event_id, at in ends.items() if now >= (self._barren.get((room_id, event_id)) or 0.0)]
        newest = max((at.anchor for at in places), default=None)
        return min((at for at in places if at.anchor == newest), default=None)

    async def is_broken(self, room_id: RoomId) -> bool:
        """Whether a room's history breaks off anywhere."""
        async with self._shards.of_room(room_id).reading() as tx:
            return await backward_extremities.has_any(tx, room_id)

    async def nearest_elsewhere(self, room_id: RoomId, ts: int, *, backwards: bool) -> tuple[EventId, int] | None:
        """The event nearest to a time that one of the room's servers has, and its own time; perhaps not here."""
        async with self._shards.of_room(room_id).reading() as tx:
            servers = await list_servers(tx, room_id, self._server_name, MAX_SERVERS)
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                for server in servers:
                    try:
                        return await self._fetcher.timestamp_to_event(server, room_id, ts, backwards=backwards)
                    except PeerError as error:
                        log.info("no event by its time", room_id=room_id, server=server, reason=str(error))
        return None

    async def _fetch_quietly(self, room_id: RoomId, database: Database, ends: Mapping[EventId, OrderKey]) -> bool:
        is_more = False
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                is_more = await self._fetch(room_id, database, ends)
        except (DatabaseUnavailable, PartitionMoved, CommandUnanswered, OSError, TimeoutError) as error:
            log.warning("nothing backfilled", room_id=room_id, error=str(error) or type(error).__name__)
        except Exception:  # what a peer answers must not end a reader's request
            log.exception("backfilling failed", room_id=room_id)
        if not is_more:
            for event_id in ends:
                self._barren[room_id, event_id] = self._clock.monotonic() + BARREN_SECONDS
        return is_more

    async def _fetch(self, room_id: RoomId, database: Database, ends: Mapping[EventId, OrderKey]) -> bool:
        anchor = max(order.anchor for order in ends.values())
        async with database.reading() as tx:
            # Those above the stretch, too: what they stand on is placed below it.
            side_by_side = await backward_extremities.list_of_anchors(tx, room_id, [anchor])
            starts = sorted(side_by_side, key=lambda event_id: side_by_side[event_id])[:MAX_STARTS]
            room = await fetches.find_room(tx, room_id)
            servers = await list_servers(tx, room_id, self._server_name, MAX_SERVERS)
        if room is None:
            return False
        rules = ROOM_VERSIONS[room.room_version]
        for number, server in enumerate(servers):
            try:
                found = await self._fetcher.backfill(server, room_id, rules, starts, EVENTS)
            except PeerError as error:
                log.info("not backfilled", room_id=room_id, server=server, reason=str(error))
                continue
            async with database.reading() as tx:
                known = await fetches.find_known(tx, room_id, [event.event_id for event in found])
            fresh = {event.event_id: event for event in found if event.event_id not in known.placed}
            asked = [*servers[number:], *servers[:number]]
            if fresh and await self._take_in(room_id, database, room, asked, starts, fresh, anchor):
                return True
        return False

    async def _take_in(
        self,
        room_id: RoomId,
        database: Database,
        room: FetchedRoom,
        servers: Sequence[ServerName],
        starts: Sequence[EventId],
        fresh: dict[EventId, Event],
        anchor: int,
    ) -> bool:
        """Hand history to the writer, with the states before the events on which it stands; whether it took any."""
        tops, cited = await self._needs(room_id, database, fresh)
        told = await self._derive_state(room_id, database, room, starts, fresh, tops)
        outliers: dict[EventId, Event] = {}
        for top in tops[:MAX_TOPS] if not told else ():
            state = await fetch_told_state(self._fetcher, database, room_id, room, servers, top)
            if state is not None:
                told[top] = state.state
                outliers.update((event.event_id, event) for event in state.events)
        if lacking := cited - outliers.keys():
            rules = ROOM_VERSIONS[room.room_version]
            outliers |= await self._fetcher.events(servers, room_id, rules, sorted(lacking)[:EVENTS])
        await self._command(room_id, database, room, servers[0], list(outliers.values()))
        stored = await self._command(room_id, database, room, servers[0], list(fresh.values()), told=told, below=anchor)
        log.info("backfilled", room_id=room_id, server=servers[0], events=len(stored), states=len(told))
        return bool(stored)

    @staticmethod
    async def _needs(
        room_id: RoomId, database: Database, fresh: Mapping[EventId, Event]
    ) -> tuple[list[EventId], set[EventId]]:
        """The events whose prev events are not here, and the auth events that are not."""
        prev_events = {prev for event in fresh.values() for prev in event.prev_events} - fresh.keys()
        cited = {one for event in fresh.values() for one in event.auth_events} - fresh.keys()
        async with database.reading() as tx:
            known = await fetches.find_known(tx, room_id, prev_events | cited)
        absent = prev_events - known.placed
        tops = [event_id for event_id, event in fresh.items() if not absent.isdisjoint(event.prev_events)]
        return tops, cited - known.placed - known.outliers

    @staticmethod
    async def _derive_state(
        room_id: RoomId,
        database: Database,
        room: FetchedRoom,
        starts: Sequence[EventId],
        fresh: Mapping[EventId, Event],
        tops: Sequence[EventId],
    ) -> dict[EventId, tuple[EventId, ...]]:
        """The state before the lowest event, if the history down to it is a line of messages: it changes nothing."""
        if len(starts) != 1 or len(tops) != 1:
            return {}
        async with database.reading() as tx:
            pdu = (await list_pdus(tx, room_id, starts)).get(starts[0])
            if pdu is None:
                return {}
            event = load_event(pdu, starts[0], ROOM_VERSIONS[room.room_version], room_id=room_id)
            for _ in fresh:
                if event.event_id == tops[0]:
                    break
                below = fresh.get(event.prev_events[0]) if len(event.prev_events) == 1 else None
                if below is None or below.state_key is not None:
                    return {}
                event = below
            if event.event_id != tops[0]:
                return {}
            state = await load_state_before(tx, room_id, starts[0])
        return {} if state is None else {tops[0]: tuple(state.values())}

    async def _command(
        self,
        room_id: RoomId,
        database: Database,
        room: FetchedRoom,
        origin: ServerName,
        events: Sequence[Event],
        *,
        told: Mapping[EventId, Sequence[EventId]] | None = None,
        below: int | None = None,
    ) -> list[EventId]:
        """Let the writer take events in, as outliers or as history; those that are stored."""
        now_ms, stored = self._clock.now_ms(), list[EventId]()
        rows = [
            NewInboxRow(
                room.partition,
                room_id,
                origin,
                event.event_id,
                event.pdu,
                now_ms,
                "new",
                below is None,
                orjson.dumps(told[event.event_id]) if told and event.event_id in told else None,
                below,
            )
            for event in events
        ]
        for start in range(0, len(rows), ROWS_OF_A_COMMAND):
            async with database.reading() as tx:
                ids = await inbox.add(tx, rows[start : start + ROWS_OF_A_COMMAND])
            command_id = self._ids.random_bytes(32)
            command = Command(command_id, room_id, room.partition, NOBODY, now_ms, ReceivePdus(tuple(ids)))
            stored += (await self._commands.submit(command, timeout_seconds=COMMAND_SECONDS)).event_ids
        return stored

"""Fetching what PDUs wait for: their ancestors, or the state before them where these are too many.

The writer parks what lacks something; whoever hears of it first takes the room on, asks the servers that sent the
waiting PDUs and then others, stages what they answer and lets the writer try again. What still lacks something comes
back here.

Spec: S-S API §Checks performed on receipt of a PDU, §Backfilling and retrieving missing events; DESIGN.md section 6.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import orjson
import structlog

from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, RoomId, ServerName
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from services.federation_in.naming import InboxNaming
from services.federation_in.room_turns import RoomTurns
from tessera.clock import Clock
from tessera.federation.errors import PeerError
from tessera.federation.event_fetching import EventFetcher
from tessera.federation.told_states import fetch_told_state
from tessera.storage import fetches, inbox
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.fetches import FetchedRoom, Parked
from tessera.storage.inbox import NewInboxRow
from tessera.storage.peer_rooms import list_servers
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

MAX_SERVERS = 5  # asked for one room at once
MAX_MISSING = 200  # events that are looked after at once
MAX_HEADS = 20  # waiting PDUs from which history is asked for
MAX_CHASES = 5  # answers about history in a row; then the state is asked for
CHASE_LIMIT = 100  # events of such an answer; servers give fewer
MAX_OUTLIER_ROUNDS = 10
MAX_OUTLIERS = 1_000
MAX_LYING = 5_000  # rows of a room's inbox, above which nothing is fetched
LEASE_SECONDS = 20.0  # after which somebody else fetches for a dead process's rooms
RENEW_SECONDS = 5.0
FETCH_SECONDS = 120.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 3_600.0
SWEEP_SECONDS = 10.0
SWEEP_ROOMS = 50
KEEP_SECONDS = 3 * 24 * 3_600.0  # that PDUs wait for ancestors that nobody gives
EXPIRED_ROWS = 1_000


class _Found(Enum):
    """What came of fetching."""

    NOTHING = "nothing"  # it is to be tried again later
    ALL_HERE = "all here"  # there was nothing to be fetched
    STAGED = "staged"  # the writer is to try again


@dataclass(slots=True)
class _Task:
    """A room that is being fetched for, and what there is to be staged.

    Attributes:
        told: fetched or parked events with the state before them.
    """

    room_id: RoomId
    room: FetchedRoom
    rules: RoomVersionRules
    servers: list[ServerName]
    history: dict[EventId, Event]
    outliers: dict[EventId, Event]
    told: dict[EventId, tuple[EventId, ...]]


class AncestorFetcher:
    """Fetches for rooms, each by one process at a time."""

    def __init__(
        self,
        server_name: ServerName,
        shards: RoomShards,
        fetcher: EventFetcher,
        clock: Clock,
        owner: str,
    ) -> None:
        self._server_name = server_name
        self._shards = shards
        self._fetcher = fetcher
        self._clock = clock
        self._owner = owner
        self._turns = RoomTurns("fetching what is missing")
        self._claimed: set[RoomId] = set()

    def wake(self, room_id: RoomId) -> None:
        """PDUs of a room may lack something."""
        self._turns.wake(room_id)

    async def run(self, naming: InboxNaming) -> None:
        """Run for ever: fetch for the rooms that wake it."""

        async def look_after(room_id: RoomId) -> None:
            if await self.fetch_room(room_id):
                await naming.unpark(room_id)

        await self._turns.run(look_after)

    async def sweep(self) -> None:
        """Run for ever: find rooms that nobody fetches for, and give up what has waited too long."""

        async def find(tx: Transaction) -> Sequence[RoomId]:
            await fetches.expire(tx, KEEP_SECONDS, EXPIRED_ROWS)
            return await fetches.list_open(tx, SWEEP_ROOMS)

        await self._turns.sweep(self._shards, self._clock, SWEEP_SECONDS, find)

    async def renew(self) -> None:
        """Run for ever: keep the rooms that are being fetched for."""
        while True:
            await self._clock.sleep(RENEW_SECONDS)
            await self.renew_once()

    async def renew_once(self) -> None:
        """Say of each room that is being fetched for that it still is.

        Of one of which it cannot be said somebody else may fetch the same: the work is done twice, and staged once.
        """
        try:
            groups = self._shards.group_rooms(self._claimed)
        except DatabaseUnavailable as error:  # nobody knows for now where the rooms lie
            log.warning("rooms not kept", rooms=len(self._claimed), error=str(error))
            return
        for shard, mine in groups.items():
            try:
                async with self._shards.databases[shard].reading() as tx:
                    await fetches.renew(tx, mine, self._owner, LEASE_SECONDS)
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                log.warning("rooms not kept", rooms=len(mine), error=str(error) or type(error).__name__)

    async def fetch_room(self, room_id: RoomId) -> bool:
        """Fetch for a room unless somebody else does; whether its writer is to try again."""
        database = self._shards.of_room(room_id)
        async with database.reading() as tx:
            missing = await inbox.list_missing(tx, room_id, MAX_MISSING)
            if not missing:
                return await fetches.has_staged(tx, room_id)
            failures = await fetches.claim(tx, room_id, self._owner, LEASE_SECONDS)
        if failures is None:
            return False
        found: _Found | None = None
        self._claimed.add(room_id)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                found = await self._fetch(room_id, database)
        finally:
            self._claimed.discard(room_id)
            async with database.reading() as tx:
                if found is not None and found is not _Found.NOTHING:
                    await fetches.forget(tx, room_id, self._owner)
                else:
                    wait = min(FIRST_WAIT_SECONDS * 2 ** min(failures, 20), LONGEST_WAIT_SECONDS)
                    await fetches.release(tx, room_id, self._owner, failures + 1, wait)
        return found is _Found.STAGED

    async def _fetch(self, room_id: RoomId, database: Database) -> _Found:
        async with database.reading() as tx:
            room = await fetches.find_room(tx, room_id)
            missing = await inbox.list_missing(tx, room_id, MAX_MISSING)
            if room is None or not missing:
                return _Found.ALL_HERE
            heads = await fetches.list_parked(tx, room_id, as_outlier=False, limit=MAX_HEADS)
            citing = await fetches.list_parked(tx, room_id, as_outlier=True, limit=MAX_HEADS)
            known = await fetches.find_known(tx, room_id, [one.event_id for one in missing])
            others = await list_servers(tx, room_id, self._server_name, MAX_SERVERS)
            lying = await inbox.count(tx, room_id, MAX_LYING)
        if lying >= MAX_LYING:
            log.warning("too much waits for ancestors", room_id=room_id)
            return _Found.STAGED if await self._has_staged(database, room_id) else _Found.NOTHING
        origins = [one.origin for one in (*heads, *citing)]
        servers = list(dict.fromkeys((*origins[:MAX_SERVERS], *others)))[: 2 * MAX_SERVERS]
        task = _Task(room_id, room, ROOM_VERSIONS[room.room_version], servers, {}, {}, {})
        ancestors = {one.event_id for one in missing if not one.as_outlier} - known.lying
        cited = {one.event_id for one in missing if one.as_outlier} - known.lying - known.outliers
        if ancestors:
            await self._fetch_history(task, database, heads, ancestors)
        if cited := cited - task.history.keys():
            await self._fetch_outliers(task, database, citing, cited)
        if task.history or task.outliers or task.told:
            await self._stage(task, database, heads)
            return _Found.STAGED
        if ancestors or cited:
            return _Found.NOTHING
        # What they wait for lies here already, perhaps without the writer's having heard of it.
        return _Found.STAGED if await self._has_staged(database, room_id) else _Found.ALL_HERE

    @staticmethod
    async def _has_staged(database: Database, room_id: RoomId) -> bool:
        async with database.reading() as tx:
            return await fetches.has_staged(tx, room_id)

    async def _fetch_history(
        self, task: _Task, database: Database, heads: Sequence[Parked], ancestors: Collection[EventId]
    ) -> None:
        """Fetch the events between what waits and what is here; above a gap that is left, states."""
        waiting = {
            head.event_id: load_event(head.pdu, head.event_id, task.rules, room_id=task.room_id) for head in heads
        }
        for server in task.servers:
            try:
                if await self._chase(task, database, server, waiting) is not None:
                    break
            except PeerError as error:
                log.info("no history fetched", room_id=task.room_id, server=server, reason=str(error))
        events = {**waiting, **task.history}
        frontier = await self._frontier(task, database, events.values())
        tops = [event_id for event_id, event in events.items() if not frontier.isdisjoint(event.prev_events)]
        # Those that were fetched first: a state there lets everything above it stand.
        tops.sort(key=lambda event_id: event_id not in task.history)
        for event_id in tops[:MAX_HEADS]:
            fetched = await fetch_told_state(self._fetcher, database, task.room_id, task.room, task.servers, event_id)
            if fetched is not None:
                task.told[event_id] = fetched.state
                task.outliers.update((event.event_id, event) for event in fetched.events)
                continue
            for above in [one for one in task.history if one == event_id]:
                del task.history[above]  # staged without a state, it would only wait in its turn

    async def _chase(
        self, task: _Task, database: Database, server: ServerName, waiting: dict[EventId, Event]
    ) -> bool | None:
        """Ask one server for history until it connects (True) or is too far away (False); None if it gives nothing."""
        latest = list(waiting)
        for _ in range(MAX_CHASES):
            found = await self._fetcher.missing_events(
                server,
                task.room_id,
                task.rules,
                latest=latest[:MAX_HEADS],
                earliest=task.room.forward_extremities[:MAX_HEADS],
                limit=CHASE_LIMIT,
            )
            fresh = [event for event in found if event.event_id not in task.history and event.event_id not in waiting]
            if not fresh:
                break
            async with database.reading() as tx:
                known = await fetches.find_known(tx, task.room_id, [event.event_id for event in fresh])
            task.history.update(
                (event.event_id, event) for event in fresh if event.event_id not in known.placed | known.lying
            )
            events = {**waiting, **task.history}
            frontier = await self._frontier(task, database, events.values())
            if not frontier:
                return True
            latest = [
                event_id for event_id, event in task.history.items() if not frontier.isdisjoint(event.prev_events)
            ]
            if not latest:
                break
        return False if task.history else None

    async def _frontier(self, task: _Task, database: Database, events: Iterable[Event]) -> set[EventId]:
        """The prev events of these that are neither here nor fetched."""
        prev_events = {prev for event in events for prev in event.prev_events} - task.history.keys()
        async with database.reading() as tx:
            known = await fetches.find_known(tx, task.room_id, prev_events)
        return prev_events - known.placed - known.lying

    async def _fetch_outliers(
        self, task: _Task, database: Database, citing: Sequence[Parked], wanted: Collection[EventId]
    ) -> None:
        """Fetch auth events, and theirs."""
        for server in task.servers[:MAX_SERVERS] if citing else ():
            try:
                chain = await self._fetcher.auth_chain(server, task.room_id, task.rules, citing[0].event_id)
            except PeerError as error:
                log.info("no auth chain fetched", room_id=task.room_id, server=server, reason=str(error))
                continue
            async with database.reading() as tx:
                known = await fetches.find_known(tx, task.room_id, [event.event_id for event in chain])
            here = known.placed | known.lying | known.outliers | task.history.keys()
            task.outliers.update((event.event_id, event) for event in chain if event.event_id not in here)
            break
        lacking = set(wanted)
        for _ in range(MAX_OUTLIER_ROUNDS):
            lacking = {*lacking, *(cited for event in task.outliers.values() for cited in event.auth_events)}
            lacking -= task.outliers.keys() | task.history.keys()
            async with database.reading() as tx:
                known = await fetches.find_known(tx, task.room_id, lacking)
            lacking -= known.placed | known.lying | known.outliers
            if not lacking or len(task.outliers) > MAX_OUTLIERS:
                return
            found = await self._fetcher.events(task.servers, task.room_id, task.rules, sorted(lacking)[:MAX_MISSING])
            if not found:
                return
            task.outliers.update(found)

    async def _stage(self, task: _Task, database: Database, heads: Sequence[Parked]) -> None:
        """Put what was fetched into the inbox; what is in it already learns of its state at most."""
        now_ms, partition = self._clock.now_ms(), task.room.partition
        origin = task.servers[0]
        pdus = {event_id: event.pdu for event_id, event in {**task.outliers, **task.history}.items()}
        pdus.update((head.event_id, head.pdu) for head in heads if head.event_id in task.told)
        is_history = {*task.history, *task.told}
        rows = [
            NewInboxRow(
                partition,
                task.room_id,
                origin,
                event_id,
                pdu,
                now_ms,
                "staged",
                event_id not in is_history,
                orjson.dumps(task.told[event_id]) if event_id in task.told else None,
            )
            for event_id, pdu in pdus.items()
        ]
        log.info("fetched", room_id=task.room_id, history=len(task.history), rows=len(rows), states=len(task.told))
        for start in range(0, len(rows), 500):
            async with database.reading() as tx:
                await inbox.add(tx, rows[start : start + 500])

"""The answer to send_join, taken in piece by piece: checked, staged in the room's shard, judged.

Nothing is held in memory but some batches of events and, at the end, who cites whom. Signatures are checked in other
processes. What is not signed as it should be is left out; what its own auth events do not allow is kept as rejected
and is no state. Events that come after those that they cite are judged as they come, the others at the end.

Spec: S-S API §Joining Rooms, §Checks performed on receipt of a PDU (1 to 4).
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog

from matrixcore.auth_events import CREATE
from matrixcore.auth_rules import check_auth, check_auth_events
from matrixcore.event_hashes import check_content_hash
from matrixcore.events import Event, InvalidEvent, load_event, parse_event, redact_event
from matrixcore.identifiers import EventId, RoomId, StateKey
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from matrixcore.verdicts import ACCEPTED, Accepted, Rejected
from tessera.federation.errors import KeyNotFound, PeerAnsweredBadly
from tessera.federation.json_stream import ObjectSplitter, Piece, StreamBroken
from tessera.federation.keyring import Keyring
from tessera.storage import joins
from tessera.storage.database import Database
from tessera.storage.joins import Join, StagedEvent

log = structlog.get_logger(__name__)

MAX_EVENTS = 400_000  # of one answer
MAX_PIECE_BYTES = 1 << 20  # a PDU has 64 KiB, but peers may write it with blanks and escapes
BATCH = 500  # events that are checked and stored together
BATCHES = 3  # of these, side by side
MAX_UNPROVEN = 5_000  # events whose servers are asked for their keys while others are taken in
JUDGED_AT_ONCE = 300
MAX_CITED = 3_000  # events in memory that others cite
_ARRAYS = frozenset(("state", "auth_chain"))

Parsed = dict[EventId, tuple[Event, bool]]  # with whether it is state


async def stage_answer(database: Database, keyring: Keyring, join: Join, chunks: AsyncIterator[bytes]) -> Event | None:
    """Take in the body of an answer and judge what it brings.

    Args:
        database: the shard of the room.

    Returns:
        The join as the resident server has signed it, if the answer has it.

    Raises:
        PeerAnsweredBadly: it is no answer, or of another room; what was staged is of no use.
    """
    async with database.reading() as tx:
        await joins.clear_events(tx, join.join_id)
    taking = _Taking(database, keyring, join)
    splitter = ObjectSplitter(_ARRAYS, MAX_PIECE_BYTES)
    try:
        async for chunk in chunks:
            await taking.take(splitter.feed(chunk))
        splitter.close()
        await taking.finish()
    except StreamBroken as error:
        raise PeerAnsweredBadly(f"no answer to a join: {error}") from error
    finally:
        await taking.end()
    await taking.judging.judge_rest()
    return taking.signed


class _Taking:
    """What has come of one answer. While a batch is checked in other processes, the next one is parsed."""

    def __init__(self, database: Database, keyring: Keyring, join: Join) -> None:
        self._database = database
        self._keyring = keyring
        self._join = join
        self._rules = ROOM_VERSIONS[join.room_version]
        self._pending: list[Piece] = []
        self._count = 0
        self._keys: dict[StateKey, EventId] = {}
        self._places = asyncio.Semaphore(BATCHES)
        self._running: set[asyncio.Task[None]] = set()
        self._trouble: BaseException | None = None
        self._unproven = 0
        self.judging = _Judging(database, join)
        self.signed: Event | None = None

    async def take(self, pieces: Iterable[Piece]) -> None:
        """Take in some pieces."""
        for piece in pieces:
            if piece.key == "event":
                self.signed = self._parse_join(piece.text)
            elif piece.key in _ARRAYS:
                self._pending.append(piece)
                if len(self._pending) >= BATCH:
                    await self._begin_batch()

    async def finish(self) -> None:
        """Check and store what is pending, and wait for all that is under way."""
        await self._begin_batch()
        while self._running:
            await asyncio.wait(self._running)
        if self._trouble is not None:
            raise self._trouble

    async def end(self) -> None:
        """Give up whatever still runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _begin_batch(self) -> None:
        pieces, self._pending = self._pending, []
        self._count += len(pieces)
        if self._count > MAX_EVENTS:
            raise PeerAnsweredBadly(f"more than {MAX_EVENTS} events")
        await self._places.acquire()
        if self._trouble is not None:
            raise self._trouble
        self._begin(self._check_and_store(pieces))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._trouble = self._trouble or task.exception()

    async def _check_and_store(self, pieces: Sequence[Piece]) -> None:
        """Take in a batch. What lacks a key gives its place to the next batch while the key is asked for."""
        try:
            parsed = await asyncio.to_thread(_parse_all, pieces, self._rules, self._join.room_id)
            unproven = await self._store_proven(parsed, is_asking=False)
            if unproven and self._unproven + len(unproven) > MAX_UNPROVEN:
                await self._store_proven(unproven, is_asking=True)
            elif unproven:
                self._begin(self._ask_and_store(unproven))
        finally:
            self._places.release()

    async def _ask_and_store(self, unproven: Parsed) -> None:
        self._unproven += len(unproven)
        await self._store_proven(unproven, is_asking=True)
        self._unproven -= len(unproven)

    async def _store_proven(self, parsed: Parsed, *, is_asking: bool) -> Parsed:
        """Store events that are signed as they should be; the others are left out.

        Returns:
            What is neither stored nor left out, as a key is not here and nobody has been asked for it.
        """
        events = [event for event, _ in parsed.values()]
        verdicts = await self._keyring.verify_events(events, self._rules, is_asking=is_asking)
        unproven: Parsed = {}
        proven: Parsed = {}
        for event, wrong in zip(events, verdicts, strict=True):
            if wrong is None:
                proven[event.event_id] = parsed[event.event_id]
            elif isinstance(wrong, KeyNotFound) and not is_asking:
                unproven[event.event_id] = parsed[event.event_id]
            else:
                log.info("left out of a join", room_id=event.room_id, event_id=event.event_id, reason=str(wrong))
        proven.pop(self._join.event_id, None)
        rows = [self._row(event, is_state=is_state) for event, is_state in proven.values()]
        rows.sort(key=lambda row: row.event_id)  # batches that have events in common must not wait for each other
        async with self._database.reading() as tx:
            await joins.add_events(tx, self._join.join_id, rows)
        self.judging.judge_arrived(proven)
        return unproven

    def _row(self, event: Event, *, is_state: bool) -> StagedEvent:
        if is_state and self._keys.setdefault(event.state_tuple, event.event_id) != event.event_id:
            raise PeerAnsweredBadly(f"two events of the state have the key {event.state_tuple}")
        membership = event.membership if event.type == "m.room.member" else None
        return StagedEvent(
            event.event_id,
            event.type,
            event.state_key,
            event.sender,
            membership,
            event.depth,
            event.origin_server_ts,
            " ".join(event.auth_events),
            event.pdu,
            is_state,
        )

    def _parse_join(self, text: bytes) -> Event | None:
        try:
            event = parse_event(text, self._rules)
        except InvalidEvent:
            return None
        return event if event.event_id == self._join.event_id else None


def _parse_all(pieces: Iterable[Piece], rules: RoomVersionRules, room_id: RoomId) -> Parsed:
    """The events of some pieces, and whether they are state; those that are none are left out.

    Raises:
        PeerAnsweredBadly
    """
    events: Parsed = {}
    for piece in pieces:
        try:
            event = parse_event(piece.text, rules)
        except InvalidEvent as error:
            log.info("left out of a join", room_id=room_id, reason=error.reason)
            continue
        if event.room_id != room_id:
            raise PeerAnsweredBadly("state of another room")
        if event.state_key is None or "\0" in f"{event.type}{event.state_key}{event.membership}":
            continue
        if not check_content_hash(event.fields, rules):
            event = redact_event(event)
        is_state = piece.key == "state" or (event.event_id in events and events[event.event_id][1])
        events[event.event_id] = (event, is_state)
    return events


class _Judging:
    """Checks each staged event of one join against the events that it cites, those that are cited first."""

    def __init__(self, database: Database, join: Join) -> None:
        self._database = database
        self._join = join
        self._rules = ROOM_VERSIONS[join.room_version]
        self._cited: OrderedDict[EventId, Event] = OrderedDict()
        self._create: Event | None = None
        self._judged: set[EventId] = set()
        self._rejected: dict[EventId, str] = {}

    def judge_arrived(self, events: Parsed) -> None:
        """Judge those of some staged events whose auth events have been judged and are at hand."""
        for event, is_state in events.values():
            if is_state and event.state_tuple == CREATE:
                self._create = event
        for event_id in in_citing_order({event_id: event.auth_events for event_id, (event, _) in events.items()}):
            event, _ = events[event_id]
            if self._create is None or event_id in self._judged:
                continue
            if all(cited in self._judged and cited in self._cited for cited in event.auth_events):
                self._cited[event.event_id] = event
                self._judge_one(event)
        self._forget()

    async def judge_rest(self) -> None:
        """Judge what has not been judged, and note what is rejected.

        Raises:
            PeerAnsweredBadly: the state has no create event of the room's version.
        """
        async with self._database.reading() as tx:
            edges = await joins.list_edges(tx, self._join.join_id)
        if self._create is None:
            raise PeerAnsweredBadly("the state has no create event")
        if self._create.content.get("room_version", "1") != self._rules.version:
            raise PeerAnsweredBadly("the room is of another version")
        order = await asyncio.to_thread(in_citing_order, edges)
        self._rejected.update(dict.fromkeys(edges.keys() - set(order), "auth_events cite each other"))
        rest = [event_id for event_id in order if event_id not in self._judged]
        for event_ids in _slices(rest, JUDGED_AT_ONCE):
            await self._judge(event_ids, edges)
        if self._rejected:
            reasons = list(self._rejected.items())
            log.info("rejected of a join", room_id=self._join.room_id, events=len(reasons), first=reasons[0])
            async with self._database.reading() as tx:
                await joins.set_rejected(tx, self._join.join_id, reasons)

    async def _judge(self, event_ids: Sequence[EventId], edges: Mapping[EventId, Sequence[EventId]]) -> None:
        """Judge some events; what they cite has been judged, or is among them before."""
        wanted = dict.fromkeys(event_ids)
        wanted |= dict.fromkeys(cited for event_id in event_ids for cited in edges[event_id])
        missing = [event_id for event_id in wanted if event_id not in self._cited and event_id in edges]
        async with self._database.reading() as tx:
            pdus = await joins.load_pdus(tx, self._join.join_id, missing)
        for event_id, pdu in pdus.items():
            self._cited[event_id] = load_event(pdu, event_id, self._rules, room_id=self._join.room_id)
        for event_id in event_ids:
            self._judge_one(self._cited[event_id])
        self._forget()
        await asyncio.sleep(0)  # others have their turn

    def _judge_one(self, event: Event) -> None:
        verdict = self._verdict_on(event)
        self._judged.add(event.event_id)
        if isinstance(verdict, Rejected):
            self._rejected[event.event_id] = verdict.reason

    def _verdict_on(self, event: Event) -> Accepted | Rejected:
        if any(cited not in self._judged for cited in event.auth_events):
            return Rejected("auth_events cite an event that is not there")
        auth_events = [self._cited[cited] for cited in event.auth_events]
        for cited in event.auth_events:
            self._cited.move_to_end(cited)
        verdict = check_auth_events(event, auth_events, self._rejected.keys())
        if not isinstance(verdict, Accepted):
            return verdict
        verdict = check_auth(event, {cited.state_tuple: cited for cited in auth_events}, create=self._create)
        return verdict if isinstance(verdict, Rejected) else ACCEPTED

    def _forget(self) -> None:
        while len(self._cited) > MAX_CITED:
            self._cited.popitem(last=False)


def in_citing_order(edges: Mapping[EventId, Sequence[EventId]]) -> list[EventId]:
    """Events after all those that they cite, as far as these are there; those that cite in circles are left out."""
    waiting: dict[EventId, int] = {}
    citing: dict[EventId, list[EventId]] = {}
    for event_id, cited in edges.items():
        present = {one for one in cited if one in edges}
        waiting[event_id] = len(present)
        for one in present:
            citing.setdefault(one, []).append(event_id)
    order = [event_id for event_id, count in waiting.items() if count == 0]
    for event_id in order:  # it grows meanwhile
        for one in citing.get(event_id, ()):
            waiting[one] -= 1
            if waiting[one] == 0:
                order.append(one)
    return order


def _slices(event_ids: Sequence[EventId], size: int) -> Iterator[Sequence[EventId]]:
    return (event_ids[start : start + size] for start in range(0, len(event_ids), size))

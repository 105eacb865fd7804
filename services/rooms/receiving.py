"""Taking in events that other servers made or signed too.

An event whose ancestors are all here is judged by its auth events, by the state before it and by
the room's current state; one that lacks some is parked in the inbox until they have arrived.

Spec: S-S API §Checks performed on receipt of a PDU, §Rejection, §Soft failure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import orjson
import structlog

from matrixcore.auth_events import CREATE
from matrixcore.event_hashes import check_content_hash
from matrixcore.events import Event, InvalidEvent, load_event, parse_event, redact_event
from matrixcore.identifiers import EventId, StateKey, server_of
from matrixcore.verdicts import ACCEPTED, Accepted, Rejected, SoftFailed
from services.rooms.batch_builder import Building, CommandFailed, find_work, refuse, take_loaded, work_of
from services.rooms.behind_gaps import judge_by_told_state, move_backward_extremities, place_below
from services.rooms.entering import drop_strays, enter_room, note_elsewhere
from services.rooms.hot_rooms import HotRooms
from services.rooms.judging import Judged, Missing, judge, judge_outlier
from services.rooms.local_events import accept
from services.rooms.many_ends import above_some
from services.rooms.merging import place_judged, store_unplaced
from services.rooms.needs import state_keys_of, want_events, want_state
from services.rooms.policy import lacks_signature, require_signature
from services.rooms.redacting import find_target, may_apply
from services.rooms.room_past import RoomPast
from services.rooms.room_work import Refused, RoomWork, Signer, StateNotLoaded
from tessera.commands import (
    DUMMY_EVENT,
    Append,
    AppendPdu,
    Command,
    Draft,
    EnterRoom,
    NewEvent,
    NoteMembership,
    Outcome,
    ReceivePdus,
    Unpark,
)
from tessera.records import OrderKey, RecordKind
from tessera.storage import backward_extremities, inbox, state_loading
from tessera.storage.database import DatabaseUnavailable, Transaction
from tessera.storage.inbox import InboxRow
from tessera.storage.rooms import Wanted, load

log = structlog.get_logger(__name__)

MAX_ROWS = 500  # of the inbox that one command takes in, those included that it sets free
MAX_WAITING_REDACTIONS = 100
_VERDICTS = {Accepted: "accepted", SoftFailed: "soft_failed", Rejected: "rejected"}


async def receive_command(
    tx: Transaction, building: Building, rooms: HotRooms, command: Command, signer: Signer
) -> None:
    """Add one command to the batch that needs the room's past; its outcome is accepted or refused.

    Those about finished PDUs do, and those about local events of a room with too many forward extremities.

    Raises:
        StateNotLoaded: load it and build the batch again.
        CommandFailed: this command breaks the writer; build the batch again without it.
        DatabaseUnavailable
    """
    try:
        building.outcomes.append(await _outcome_of(tx, building, rooms, command, signer))
    except (StateNotLoaded, DatabaseUnavailable, OSError, TimeoutError):
        raise
    except Refused as refusal:
        building.outcomes.append(refuse(building, command, refusal))
    except Exception as error:
        log.exception("command failed", room_id=command.room_id, kind=type(command.body).__name__)
        raise CommandFailed(command) from error


async def _outcome_of(
    tx: Transaction, building: Building, rooms: HotRooms, command: Command, signer: Signer
) -> Outcome:
    body = command.body
    if isinstance(body, EnterRoom):
        return await enter_room(tx, building, rooms, command, body, signer)
    if isinstance(body, NoteMembership):
        return await note_elsewhere(tx, building, rooms, command, body, signer)
    if isinstance(body, ReceivePdus | Unpark):
        known = find_work(building, rooms, command)
        if known is None or not known.is_followed(signer.server_name):
            named = body.inbox_ids if isinstance(body, ReceivePdus) else ()
            return await drop_strays(tx, building, rooms, command, named)
    receiver = Receiver(tx, building, rooms, work_of(building, rooms, command, signer), signer)
    if isinstance(body, AppendPdu):
        return await receiver.append(command, body)
    if isinstance(body, Append | Draft):
        return await above_some(receiver.work, receiver.past, command, body, signer, receiver.load_state)
    stored = building.parts.find_stored(command)
    if stored is None:
        stored = tuple(await receiver.receive(command))
    return accept(receiver.work, command, stored)


class Receiver:
    """Takes in the PDUs of one command."""

    def __init__(self, tx: Transaction, building: Building, rooms: HotRooms, work: RoomWork, signer: Signer) -> None:
        self.work = work
        self._tx = tx
        self._building = building
        self._rooms = rooms
        self._signer = signer
        self._foreseen = building.foreseen.of_room(work.room_id)
        self.past = RoomPast(tx, work, self._foreseen)
        self._redactions: dict[EventId, Event] = {}  # target -> a redaction that waits for it
        self._above_gaps: list[Event] = []  # placed by what was told of the state before them
        self._subs: dict[int, int] = {}  # anchor -> the place below it that is given next

    async def append(self, command: Command, body: AppendPdu) -> Outcome:
        """Place a finished event of a local user, or of one who joins through this server; store nothing else.

        Raises:
            Refused
        """
        try:
            event = parse_event(body.pdu, self.work.rules)
        except InvalidEvent as error:
            raise Refused(413 if error.too_large else 400, "M_BAD_JSON", error.reason) from error
        if event.room_id != self.work.room_id or event.sender != command.sender or not event.prev_events:
            raise Refused(400, "M_BAD_JSON", "The event is not of this room and sender")
        await self._load_needs([event])
        known = (await self.past.find_places([event.event_id])).get(event.event_id)
        if known is not None and known.order is not None:
            return accept(self.work, command, (event.event_id,))
        judged = await judge(self.work, self.past, event)
        if isinstance(judged, Missing):
            raise Refused(400, "M_BAD_JSON", "The event refers to events that are not known here")
        if not isinstance(judged.verdict, Accepted):
            raise Refused(403, "M_FORBIDDEN", judged.verdict.reason)
        require_signature(self.work, event)
        await self._place(
            event,
            judged,
            sender_device=body.sender_device,
            txn_id=body.txn_id,
            forwarded=server_of(event.sender) != self._signer.server_name,
        )
        return accept(self.work, command, (event.event_id,))

    async def receive(self, command: Command) -> list[EventId]:
        """Take in PDUs and those that waited for them; the IDs of the events that are stored now."""
        parts, body = self._building.parts, command.body
        if isinstance(body, ReceivePdus):
            named = body.inbox_ids[:MAX_ROWS]
            known = self._building.foreseen.find_rows(command.room_id, named)
            rows = await inbox.load(self._tx, command.room_id, named) if known is None else known
        else:
            rows = await inbox.load_waiting(self._tx, command.room_id, MAX_ROWS)
        stored: list[EventId] = []
        budget = MAX_ROWS
        while rows and budget > 0:
            rows = rows[:budget]
            budget -= len(rows)
            parts.note_rows(command, [row.inbox_id for row in rows])
            fresh = await self._receive_round(rows)
            stored += fresh
            rows = [] if parts.is_part(command) else await self._set_free(fresh, budget)
        return stored

    async def _receive_round(self, rows: Iterable[InboxRow]) -> list[EventId]:
        pairs: list[tuple[InboxRow, Event]] = []
        for row in rows:
            if row.outlier or row.below is not None:
                self.work.asked_for.add(row.inbox_id)
            event = self._parse(row)
            if event is None:
                self.work.inbox[row.inbox_id] = None
            else:
                pairs.append((row, event))
        # Depth is forgeable and decides nothing: most ancestors come first by it, and the others are set free later.
        pairs.sort(key=lambda pair: pair[1].depth)
        await self._load_needs([event for _, event in pairs])
        await self._make_room_below(pairs)
        stored = [event.event_id for row, event in pairs if await self._receive_one(row, event)]
        if self._above_gaps or self._subs:
            await move_backward_extremities(self._tx, self.work, self.past, self._above_gaps, self._subs)
            self._above_gaps, self._subs = [], {}
        return stored

    async def _make_room_below(self, pairs: list[tuple[InboxRow, Event]]) -> None:
        """Find the places of what is backfilled, and put it in order, since the lowest place is given first."""
        rows = [row for row, _ in pairs if row.below is not None]
        if not rows:
            return
        pairs[:] = ancestors_first(pairs)
        anchors = [row.below for row in rows if row.below is not None]
        lowest = await backward_extremities.find_lowest_subs(self._tx, self.work.room_id, list(set(anchors)))
        for made in self.work.events.values():
            if made.anchor in lowest and made.sub is not None:
                lowest[made.anchor] = min(lowest[made.anchor], made.sub)
        self._subs = {anchor: lowest[anchor] - anchors.count(anchor) for anchor in lowest}

    def _parse(self, row: InboxRow) -> Event | None:
        """The event of a row; in its redacted form if its contents are not what its hash says."""
        try:
            event = self._building.foreseen.parsed.get(row.inbox_id) or parse_event(row.pdu, self.work.rules)
        except InvalidEvent as error:
            log.info("dropped a PDU", room_id=self.work.room_id, origin=row.origin, reason=error.reason)
            return None
        is_placeable = bool(event.prev_events) or (event.type == CREATE[0] and row.below is not None)
        if event.room_id != self.work.room_id or not is_placeable:
            log.info("dropped a PDU", room_id=self.work.room_id, origin=row.origin, reason="not of the room's DAG")
            return None
        return event if check_content_hash(event.fields, event.rules) else redact_event(event)

    async def _receive_one(self, row: InboxRow, event: Event) -> bool:
        """Store an event, or park it; whether it is stored now and was not before."""
        known = (await self.past.find_places([event.event_id])).get(event.event_id)
        if known is not None and (row.outlier or not known.is_outlier):
            self.work.inbox[row.inbox_id] = None
            return False
        judged, is_told = await self._judge(row, event)
        if isinstance(judged, Missing):
            # History can be asked for again, and parked it would lose its place.
            self.work.inbox[row.inbox_id] = None if row.below is not None else judged.events
            self._count("parked")
            return False
        if isinstance(judged.verdict, Accepted) and not row.outlier and row.below is None:
            if lacks_signature(self.work, event):
                if not row.policy_asked:
                    self.work.inbox[row.inbox_id] = {}
                    self.work.unsigned.add(row.inbox_id)
                    self._count("unsigned")
                    return False
                judged = replace(judged, verdict=SoftFailed("the room's policy server has not signed it"))
            elif is_told:
                # Whoever follows the room must not take what comes next for what came next.
                self.work.record(RecordKind.GAP, None)
                self._above_gaps.append(event)
        await self._store(row, event, judged)
        return True

    async def _store(self, row: InboxRow, event: Event, judged: Judged) -> None:
        self.work.inbox[row.inbox_id] = None
        self._count("outlier" if row.outlier else _VERDICTS[type(judged.verdict)])
        is_kept = row.outlier or not isinstance(judged.verdict, Accepted)
        if not is_kept and row.below is not None:
            await self._place_below(event, judged, row.below)
        elif is_kept or self._must_wait(event):
            await store_unplaced(self.work, self.past, event, judged, outlier=row.outlier)
        else:
            await self._place(event, judged)

    def _count(self, verdict: str) -> None:
        self.work.verdicts[verdict] = self.work.verdicts.get(verdict, 0) + 1

    async def _judge(self, row: InboxRow, event: Event) -> tuple[Judged | Missing, bool]:
        """What comes of the checks, and whether they were made by the state that was told."""
        if row.outlier:
            return await judge_outlier(self.work, self.past, event), False
        if not event.prev_events:
            is_ours = event.event_id == self.work.create_event().event_id
            verdict = ACCEPTED if is_ours else Rejected("not the beginning of this room")
            return Judged(verdict, await self.past.told_state({}), {}), True
        is_history = row.below is not None
        judged = await judge(self.work, self.past, event, is_history=is_history)
        if not isinstance(judged, Missing) or row.state_before is None:
            return judged, False
        told: list[EventId] = orjson.loads(row.state_before)
        return await judge_by_told_state(self.work, self.past, event, told, is_history=is_history), True

    async def _place_below(self, event: Event, judged: Judged, anchor: int) -> None:
        order = OrderKey(anchor, self._subs[anchor])
        self._subs[anchor] += 1
        redaction = self._redactions.get(event.event_id)
        if redaction is not None and not may_apply(self.work, redaction, event):
            redaction = None
        await place_below(self.work, self.past, event, judged, order, load_state=self.load_state, redaction=redaction)
        self._above_gaps.append(event)

    async def _place(
        self,
        event: Event,
        judged: Judged,
        *,
        sender_device: str | None = None,
        txn_id: str | None = None,
        forwarded: bool = False,
    ) -> None:
        redaction = self._redactions.get(event.event_id)
        if redaction is not None and not may_apply(self.work, redaction, event):
            redaction = None
        await place_judged(
            self.work,
            self.past,
            event,
            judged,
            self._signer.server_name,
            load_state=self.load_state,
            redaction=redaction,
            sender_device=sender_device,
            txn_id=txn_id,
            forwarded=forwarded,
        )

    def _must_wait(self, event: Event) -> bool:
        """Whether an accepted event is kept without a place.

        A redaction without its target meets it when that comes; an event that only merges is shown to nobody ever.
        """
        if event.type == DUMMY_EVENT:
            return True
        if event.redacts is None or find_target(self.work, event.redacts) is not None:
            return False
        self._redactions.setdefault(event.redacts, event)
        return True

    async def _set_free(self, fresh: Sequence[EventId], limit: int) -> list[InboxRow]:
        """The parked rows that waited for events that are stored now."""
        if not fresh or limit <= 0:
            return []
        work = self.work
        awaited = self._foreseen.awaited(fresh)
        rows = await inbox.load_waiting_for(self._tx, work.room_id, awaited, limit) if awaited else []
        if rows:
            work.arrived.update(dict.fromkeys(fresh))
        parked = [i for i, missing in work.inbox.items() if missing and not missing.keys().isdisjoint(fresh)]
        loaded = {row.inbox_id for row in rows}
        if more := [i for i in parked if i not in loaded]:
            rows += await inbox.load(self._tx, work.room_id, more)
        return [row for row in rows if work.inbox.get(row.inbox_id, ()) is not None][:limit]

    async def _load_needs(self, events: Sequence[Event]) -> None:
        """Everything that judging and placing the events looks at, where the room is linear."""
        if not events:
            return
        work, wanted = self.work, Wanted()
        for event in events:
            new = NewEvent(event.type, event.state_key, dict(event.content), event.redacts)
            keys = state_keys_of(new, event.sender, self._signer.server_name)
            want_state(wanted, work.hot, work.room_id, keys)
            want_events(wanted, work.hot, work.room_id, new)
        await self._load(wanted)
        named = [named for e in events for named in (e.event_id, *e.prev_events)]
        await self.past.find_places(named)
        await self.past.find_events([cited for event in events for cited in event.auth_events])
        awaited = self._foreseen.awaited(event.event_id for event in events)
        if not awaited:
            return
        found = await state_loading.list_redactions(self._tx, work.room_id, awaited, MAX_WAITING_REDACTIONS)
        for redaction in (await self.past.find_events(found)).values():
            if redaction.redacts is not None:
                self._redactions.setdefault(redaction.redacts, redaction)

    async def load_state(self, keys: Iterable[StateKey]) -> None:
        """Make current state known at more keys, without a place in the hot room's memory."""
        work, wanted = self.work, Wanted()
        keys = [key for key in keys if key not in work.pinned]
        want_state(wanted, work.hot, work.room_id, keys)
        if not wanted:
            return
        found = (await load(self._tx, wanted)).state
        for room_id, *key in wanted.state:
            pair = found.get((room_id, key[0], key[1]))
            event = None if pair is None else load_event(pair[1], pair[0], work.rules, room_id=room_id)
            work.pinned[key[0], key[1]] = event

    async def _load(self, wanted: Wanted) -> None:
        if not wanted:
            return
        found = await load(self._tx, wanted)
        take_loaded(self._rooms, wanted, found)
        loaded = self._building.loaded
        loaded.state.update(found.state)
        loaded.events.update(found.events)
        loaded.threads.update(found.threads)


def ancestors_first(pairs: Sequence[tuple[InboxRow, Event]]) -> list[tuple[InboxRow, Event]]:
    """In an order in which the prev events of each come before it, and the given one where that says nothing."""
    by_id = {event.event_id: (row, event) for row, event in pairs}
    ordered: dict[EventId, tuple[InboxRow, Event]] = {}
    for start in by_id:
        stack, seen = [start], set[EventId]()
        while stack:
            event_id = stack[-1]
            further = [e for e in by_id[event_id][1].prev_events if e in by_id and e not in ordered and e not in seen]
            seen.add(event_id)
            if further:
                stack.append(further[0])
                continue
            stack.pop()
            ordered.setdefault(event_id, by_id[event_id])
    return list(ordered.values())

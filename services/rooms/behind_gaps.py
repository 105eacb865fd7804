"""Events whose prev events are not here: judged by the state before them as other servers tell it.

A live one begins a new stretch of the room's history above a gap. What is backfilled lies below such an event, or
below the join by which this server came in, and has no record: it is read, never announced.

Spec: S-S API §Checks performed on receipt of a PDU, §Backfilling and retrieving missing events; DESIGN.md section 4.
"""

from collections.abc import Collection, Sequence

from matrixcore.auth_events import auth_state_keys
from matrixcore.auth_rules import check_auth, check_current_state
from matrixcore.events import Event, redact_event
from matrixcore.identifiers import EventId
from matrixcore.relations import THREAD
from matrixcore.verdicts import Accepted
from matrixcore.visibility import parse_history_visibility
from services.rooms.judging import Judged, Missing, check_by_auth_events
from services.rooms.merging import LoadState
from services.rooms.placing import HISTORY_VISIBILITY, unplaced_row
from services.rooms.redacting import apply_redaction
from services.rooms.room_past import RoomPast, State
from services.rooms.room_work import RoomWork
from tessera.records import OrderKey
from tessera.storage import backward_extremities
from tessera.storage.database import Transaction
from tessera.storage.state_loading import encode_delta


async def judge_by_told_state(
    work: RoomWork, past: RoomPast, event: Event, state_ids: Sequence[EventId], *, is_history: bool
) -> Judged | Missing:
    """Check an event by the state before it as it was told.

    Args:
        state_ids: the events of that state; outliers suffice, and rejected ones do not count.
        is_history: never mind current state.

    Raises:
        StateNotLoaded
    """
    places = await past.find_places(state_ids)
    auth_events = await past.find_events(event.auth_events)
    missing = {cited: True for cited in event.auth_events if cited not in auth_events}
    missing |= {told: True for told in state_ids if told not in places}
    if missing:
        return Missing(missing)
    past.learn(event)
    before = await past.told_state(
        {p.state_key: p.event_id for p in places.values() if p.state_key is not None and not p.is_rejected}
    )
    prev_places = await past.find_places(event.prev_events)
    verdict = check_by_auth_events(work, past, event, list(auth_events.values()))
    if isinstance(verdict, Accepted):
        keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
        there = await past.get_state_events(before, keys)
        verdict = check_auth(event, there, create=work.create_event())
        if isinstance(verdict, Accepted) and not is_history:
            # Current state is of before the gap; what has happened in it counts as well.
            now = await past.get_state_events(await past.resolve([before, {}]), keys)
            return Judged(check_current_state(event, now, create=work.create_event()), before, prev_places)
    return Judged(verdict, before, prev_places)


async def place_below(
    work: RoomWork,
    past: RoomPast,
    event: Event,
    judged: Judged,
    order: OrderKey,
    *,
    load_state: LoadState,
    redaction: Event | None,
) -> None:
    """Give an accepted event of history its place below a live one. No record tells of it."""
    before: State = judged.before or {}
    await load_state([HISTORY_VISIBILITY])
    visibility = (await past.get_state_events(before, [HISTORY_VISIBILITY])).get(HISTORY_VISIBILITY)
    setting = parse_history_visibility(None if visibility is None else visibility.content.get("history_visibility"))
    shown = event if redaction is None else redact_event(event)
    row = unplaced_row(work, shown, forked=True)
    work.events[event.event_id] = row._replace(
        anchor=order.anchor,
        sub=order.sub,
        history_visibility=setting.value,
        thread_root=row.relates_to if row.rel_type == THREAD else None,
        redacted_by=None if redaction is None else redaction.event_id,
        original_pdu=None if redaction is None else event.pdu,
    )
    part = work.partition
    keep = (part.partition, work.room_id, event.event_id, part.position, 0, encode_delta(before))
    work.add_row("forked_states", keep)
    for prev_event in event.prev_events:
        work.add_row("edges", (part.partition, work.room_id, prev_event, event.event_id))
    if event.redacts is not None:
        apply_redaction(work, event)


async def move_backward_extremities(
    tx: Transaction, work: RoomWork, past: RoomPast, placed: Collection[Event], anchors: Collection[int]
) -> None:
    """Note which of the placed events stand on nothing, and which of those that did so no longer do.

    Args:
        placed: now, from behind a gap.
        anchors: under which events were placed.
    """
    part = work.partition.partition
    for event in await _unsupported(past, placed):
        row = work.events[event.event_id]
        if row.anchor is not None:
            work.add_row("backward", (part, work.room_id, event.event_id, row.anchor, row.sub))
    stored = await backward_extremities.list_of_anchors(tx, work.room_id, sorted(anchors))
    events = await past.find_events(stored)
    unsupported = {event.event_id for event in await _unsupported(past, events.values())}
    for event_id, order in stored.items():
        if event_id not in unsupported:
            work.add_row("backward_gone", (part, work.room_id, *order))


async def _unsupported(past: RoomPast, events: Collection[Event]) -> list[Event]:
    """Those of the events with a prev event that is not part of the history here."""
    places = await past.find_places([prev for event in events for prev in event.prev_events])
    known = {event_id for event_id, place in places.items() if not place.is_outlier}
    return [event for event in events if not known.issuperset(event.prev_events)]

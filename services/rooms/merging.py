"""Giving a judged event its place among the forward extremities, and the room the state that follows.

Spec: S-S API §Rejection, §Soft failure; Server-Server §Room State Resolution; DESIGN.md section 4.
"""

from collections.abc import Awaitable, Callable, Iterable

from matrixcore.events import Event, redact_event
from matrixcore.identifiers import EventId, ServerName, StateKey
from matrixcore.verdicts import Rejected, SoftFailed
from matrixcore.visibility import parse_history_visibility
from services.rooms.judging import Judged
from services.rooms.placing import HISTORY_VISIBILITY, STRIPPED, note_membership, place_event, unplaced_row
from services.rooms.redacting import apply_redaction
from services.rooms.room_past import RoomPast, State
from services.rooms.room_work import MEMBER, RoomWork, local_user
from tessera.commands import MembershipDelta
from tessera.records import RecordKind, StateBody, StateMembership
from tessera.storage.state_loading import encode_delta

LoadState = Callable[[Iterable[StateKey]], Awaitable[None]]
MAX_PASSED = 500  # soft-failed and rejected events through which an event replaces extremities


async def store_unplaced(
    work: RoomWork, past: RoomPast, event: Event, judged: Judged, *, outlier: bool = False
) -> None:
    """Keep an event that nobody is shown: an outlier, a rejected or soft-failed one, a redaction without its target.

    The last of these is part of the DAG like any accepted event.
    """
    verdict = judged.verdict
    work.events[event.event_id] = unplaced_row(
        work,
        event,
        outlier=outlier,
        rejected=verdict.reason if isinstance(verdict, Rejected) else None,
        soft_failed=verdict.reason if isinstance(verdict, SoftFailed) else None,
        forked=judged.before is not None,
    )
    if outlier:
        return
    _keep_state_before(work, event, judged)
    _add_edges(work, event)
    if not isinstance(verdict, Rejected | SoftFailed):
        await _advance(work, past, event, judged, is_end=not await past.is_followed(event.event_id))


async def place_judged(
    work: RoomWork,
    past: RoomPast,
    event: Event,
    judged: Judged,
    server_name: ServerName,
    *,
    load_state: LoadState,
    redaction: Event | None = None,
    sender_device: str | None = None,
    txn_id: str | None = None,
    forwarded: bool = False,
) -> None:
    """Place an accepted event; where the room forks, resolve what its state is from here on.

    Args:
        load_state: makes current state known in memory at some keys.
        redaction: an accepted one that waited for this event.
    """
    shown, original_pdu, redacted_by = event, None, None
    if redaction is not None:
        shown, original_pdu, redacted_by = redact_event(event), event.pdu, redaction.event_id
    if judged.before is None:
        place_event(
            work,
            shown,
            server_name,
            sender_device=sender_device,
            txn_id=txn_id,
            forked=work.forked,
            redacted_by=redacted_by,
            original_pdu=original_pdu,
            forwarded=forwarded,
        )
        work.advance(event)
    else:
        before = judged.before
        _keep_state_before(work, event, judged)
        # What comes after the events above it is no end of the room, and changes no state: theirs say what it was.
        is_end = not await past.is_followed(event.event_id)
        await _advance(work, past, event, judged, is_end=is_end)
        delta = dict(await _resolve_extremities(work, past, event if is_end else None, before))
        wins = event.state_key is not None and delta.get(event.state_tuple) == event.event_id
        if wins:
            del delta[event.state_tuple]
        await load_state([*delta, *STRIPPED])
        visibility = await past.get_state_events(before, [HISTORY_VISIBILITY])
        content = visibility[HISTORY_VISIBILITY].content if visibility else {}
        place_event(
            work,
            shown,
            server_name,
            sender_device=sender_device,
            txn_id=txn_id,
            forked=bool(before) or (event.state_key is not None and not wins),
            becomes_current=wins,
            visibility=parse_history_visibility(content.get("history_visibility")),
            redacted_by=redacted_by,
            original_pdu=original_pdu,
            forwarded=forwarded,
        )
        await _change_state(work, past, delta, server_name)
    if event.redacts is not None:
        apply_redaction(work, event)


async def _resolve_extremities(work: RoomWork, past: RoomPast, event: Event | None, before: State) -> State:
    """The room's state, once the event, if one is given, is one of its extremities."""
    states: list[State] = []
    if event is not None:
        states.append(before if event.state_key is None else await past.with_event(before, event))
    others = [event_id for event_id in work.extremities if event is None or event_id != event.event_id]
    places = await past.find_places(others)
    return await past.resolve([*states, *await past.states_after(list(places.values()))])


async def _change_state(
    work: RoomWork, past: RoomPast, delta: dict[StateKey, EventId | None], server_name: ServerName
) -> None:
    """Tell of changes of current state that no event of the timeline explains, in one record."""
    if not delta:
        return
    events = await past.find_events(event_id for event_id in delta.values() if event_id is not None)
    position = work.partition.position + 1
    replaced = {key: work.state(key) for key in delta}
    for key, event_id in delta.items():
        work.set_state(key, None if event_id is None else events[event_id], position)
    noted = len(work.memberships)
    for key, before in sorted(replaced.items()):
        if key[0] == MEMBER:
            _note_changed_membership(work, key[1], before, position, server_name)
    memberships = tuple(
        StateMembership(one.user_id, one.membership, one.event_id, one.sender, one.stripped_state)
        for one in work.memberships[noted:]
    )
    changes = tuple((*key, event_id) for key, event_id in sorted(delta.items()))
    work.record(RecordKind.STATE, StateBody(changes, None, memberships))


def _note_changed_membership(
    work: RoomWork, user: str, before: Event | None, position: int, server_name: ServerName
) -> None:
    after = work.state((MEMBER, user))
    if after is not None:
        note_membership(work, after, before, position, server_name)
    elif before is not None and (user_id := local_user(user, server_name)) is not None:
        was = before.membership or "leave"
        work.memberships.append(MembershipDelta(user_id, "leave", before.event_id, before.sender, position, None, was))


def _keep_state_before(work: RoomWork, event: Event, judged: Judged) -> None:
    """Write how the state before the event differs from the room's, unless its place alone says it."""
    delta = judged.before or {}
    is_placed = event.event_id not in work.events
    if delta or not is_placed:
        part = work.partition
        row = (part.partition, work.room_id, event.event_id, part.position, 0, encode_delta(delta))
        work.add_row("forked_states", row)


async def _advance(work: RoomWork, past: RoomPast, event: Event, judged: Judged, *, is_end: bool) -> None:
    """Move the extremities; those that the event reaches through events that cannot be extremities go too."""
    passed = await _passed_through(past, judged)
    work.extremities = tuple(event_id for event_id in work.extremities if event_id not in passed)
    work.advance(event)
    if not is_end:
        work.extremities = work.extremities[:-1]


async def _passed_through(past: RoomPast, judged: Judged) -> set[EventId]:
    passed: set[EventId] = set()
    unplaced = [place for place in judged.prev_places.values() if place.order is None]
    while unplaced and len(passed) < MAX_PASSED:
        events = await past.find_events(place.event_id for place in unplaced)
        further = {prev for event in events.values() for prev in event.prev_events} - passed
        passed |= further
        unplaced = [place for place in (await past.find_places(further)).values() if place.order is None]
    return passed


def _add_edges(work: RoomWork, event: Event) -> None:
    for prev_event in event.prev_events:
        work.add_row("edges", (work.partition.partition, work.room_id, prev_event, event.event_id))

"""Local events of a room that has more forward extremities than an event may have prev events.

Such an event stands above some of the extremities only, and the other servers judge it by what the states after these
resolve to. So it is judged by that here too, cites its auth events out of that, and must be allowed by the room's
current state besides: nobody may do on a part of the branches what the whole room forbids. Its extremities are those
whose states say the same as current state about who may send it, so that what the room allows is allowed there.

Each such event takes the place of 20 extremities, so they soon are few.

Spec: S-S API §PDUs (prev_events, at most 20), §Checks performed on receipt of a PDU.
"""

from collections.abc import Sequence

from matrixcore.auth_rules import check_current_state
from matrixcore.events import MAX_PREV_EVENTS, Event
from matrixcore.identifiers import EventId, StateKey
from matrixcore.verdicts import ACCEPTED, Accepted
from services.rooms.judging import Judged
from services.rooms.local_events import accept, build_on, find_done, find_unchanged, keys_of
from services.rooms.merging import LoadState, place_judged, store_unplaced
from services.rooms.policy import require_signature
from services.rooms.room_past import RoomPast, State
from services.rooms.room_work import Refused, RoomWork, Signer
from tessera.commands import DUMMY_EVENT, Append, Command, Draft, Outcome

MAX_CONSIDERED = 200  # of the newest extremities


def has_many_ends(extremities: Sequence[EventId]) -> bool:
    """Whether an event cannot stand above all of these."""
    return len(extremities) > MAX_PREV_EVENTS


async def above_some(
    work: RoomWork, past: RoomPast, command: Command, body: Append | Draft, signer: Signer, load_state: LoadState
) -> Outcome:
    """`local_events.append` or `draft`, above some of the extremities.

    Raises:
        Refused, StateNotLoaded
    """
    if isinstance(body, Append) and (done := find_done(work, body)) is not None:
        return accept(work, command, (done,))
    event, before, chosen = await _build(work, past, command, body, signer)
    if isinstance(body, Draft):
        return accept(work, command, (event.event_id,), body=event.pdu)
    if (same := find_unchanged(work, event)) is not None:
        return accept(work, command, (same,))
    require_signature(work, event)
    past.learn(event)
    judged = Judged(ACCEPTED, before, await past.find_places(chosen))
    if event.type == DUMMY_EVENT:
        await store_unplaced(work, past, event, judged)
        return accept(work, command, (event.event_id,))
    await place_judged(
        work,
        past,
        event,
        judged,
        signer.server_name,
        load_state=load_state,
        sender_device=body.sender_device,
        txn_id=body.txn_id,
    )
    return accept(work, command, (event.event_id,))


async def _build(
    work: RoomWork, past: RoomPast, command: Command, body: Append | Draft, signer: Signer
) -> tuple[Event, State, list[EventId]]:
    """The event, the state before it and its prev events."""
    new, sender = body.event, command.sender
    keys = keys_of(work, new, sender)
    ends = list((await past.find_places(work.extremities[-MAX_CONSIDERED:])).values())
    states = await past.states_after(ends)
    apart = [sum(key in state for key in keys) for state in states]
    # Those that differ least from current state, of these the newest; sorting keeps their order otherwise.
    nearest = sorted(range(len(ends)), key=lambda at: (apart[at], -at))[:MAX_PREV_EVENTS]
    like_current = [at for at in nearest if not apart[at]]
    refused: Refused | None = None
    for chosen in (nearest, like_current):
        if not chosen:
            continue
        before = await past.resolve([states[at] for at in chosen])
        there = await past.get_state_events(before, keys)
        prev_events = [ends[at].event_id for at in chosen]
        try:
            event = build_on(work, new, sender, command.origin_server_ts, signer, prev_events, there)
        except Refused as refusal:
            refused = refused or refusal
            continue
        _check_by_current_state(work, event, keys)
        return event, before, prev_events
    assert refused is not None
    raise refused


def _check_by_current_state(work: RoomWork, event: Event, keys: Sequence[StateKey]) -> None:
    current = {key: found for key in keys if (found := work.state(key)) is not None}
    verdict = check_current_state(event, current, create=work.create_event())
    if not isinstance(verdict, Accepted):
        raise Refused(403, "M_FORBIDDEN", verdict.reason)

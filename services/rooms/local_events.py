"""Building this server's own events: append, draft and createRoom.

Spec: S-S API §Authorization rules; C-S API §Sending events to a room, §Creation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from matrixcore.auth_events import CREATE, auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.canonical_json import MAX_INTEGER
from matrixcore.event_building import build_event
from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import EventId, StateKey, UserId
from matrixcore.room_versions import EventIdFormat
from matrixcore.verdicts import Accepted
from services.rooms.hot_rooms import hash_of
from services.rooms.placing import place_event
from services.rooms.policy import require_signature
from services.rooms.redacting import apply_redaction, check_local_redaction
from services.rooms.room_work import MEMBER, Refused, RoomWork, Signer
from tessera.commands import Append, Command, CreateRoom, Draft, NewEvent, Outcome, OutcomeStatus

OPAQUE_LETTERS = 18  # of event IDs in room versions 1 and 2


def append(work: RoomWork, command: Command, body: Append, signer: Signer) -> Outcome:
    """Build, authorise and place one event.

    Raises:
        Refused
    """
    if (done := find_done(work, body)) is not None:
        return accept(work, command, (done,))
    event = build(work, body.event, command.sender, command.origin_server_ts, signer)
    same = find_unchanged(work, event)
    if same is not None:
        return accept(work, command, (same,))
    require_signature(work, event)
    add_local(work, event, signer, sender_device=body.sender_device, txn_id=body.txn_id)
    return accept(work, command, (event.event_id,))


def draft(work: RoomWork, command: Command, body: Draft, signer: Signer) -> Outcome:
    """Build, authorise and sign an event without placing it.

    Raises:
        Refused
    """
    event = build(work, body.event, command.sender, command.origin_server_ts, signer)
    return accept(work, command, (event.event_id,), body=event.pdu)


def create_room(work: RoomWork, command: Command, body: CreateRoom, signer: Signer) -> Outcome:
    """Place the create event and all that follows; the caller drops the work if any is refused.

    Raises:
        Refused
    """
    try:
        create = parse_event(body.create_pdu, work.rules)
    except InvalidEvent as error:
        raise Refused(400, "M_BAD_JSON", error.reason) from error
    if create.type != CREATE[0] or create.state_key != "" or create.room_id != work.room_id:
        raise Refused(400, "M_BAD_JSON", "the create event is not that of the room")
    verdict = check_auth(create, {})
    if not isinstance(verdict, Accepted):
        raise Refused(400, "M_INVALID_ROOM_STATE", verdict.reason)
    work.create_row = (work.rules.version, create.sender, create.event_id, work.now_ms)
    place_event(work, create, signer.server_name, sender_device=body.sender_device)
    work.advance(create)
    event_ids = [create.event_id]
    for new in body.events:
        event = build(work, new, command.sender, command.origin_server_ts, signer)
        if find_unchanged(work, event) is None:
            add_local(work, event, signer, sender_device=body.sender_device)
            event_ids.append(event.event_id)
    return accept(work, command, tuple(event_ids))


def add_local(
    work: RoomWork, event: Event, signer: Signer, *, sender_device: str | None = None, txn_id: str | None = None
) -> None:
    """Place an event that has been authorised, and what it redacts."""
    place_event(work, event, signer.server_name, sender_device=sender_device, txn_id=txn_id, forked=work.forked)
    work.advance(event)
    if event.redacts is not None:
        apply_redaction(work, event)


def accept(work: RoomWork, command: Command, event_ids: tuple[EventId, ...], *, body: bytes = b"") -> Outcome:
    """The outcome of a command that was carried out."""
    memberships = tuple(work.memberships)
    work.memberships.clear()
    return Outcome(
        command.id,
        OutcomeStatus.ACCEPTED,
        work.partition.partition,
        work.partition.incarnation,
        work.last_position,
        event_ids,
        body=body,
        memberships=memberships,
    )


def build(work: RoomWork, new: NewEvent, sender: UserId, origin_server_ts: int, signer: Signer) -> Event:
    """A signed event on top of the forward extremities, allowed by the current state.

    There must not be more of them than an event may have prev events (`many_ends` is for such rooms).

    Raises:
        Refused
    """
    auth_state: dict[StateKey, Event] = {}
    for key in keys_of(work, new, sender):
        if (found := work.state(key)) is not None:
            auth_state[key] = found
    return build_on(work, new, sender, origin_server_ts, signer, work.extremities, auth_state)


def keys_of(work: RoomWork, new: NewEvent, sender: UserId) -> list[StateKey]:
    """The keys of the state that decide on a new event."""
    return list(auth_state_keys(new.type, new.state_key, sender, new.content, work.rules))


def build_on(
    work: RoomWork,
    new: NewEvent,
    sender: UserId,
    origin_server_ts: int,
    signer: Signer,
    prev_events: Sequence[EventId],
    auth_state: Mapping[StateKey, Event],
) -> Event:
    """A signed event on top of some events, allowed by the state there.

    Raises:
        Refused
    """
    rules = work.rules
    content = _normal_content(new, redacts_in_content=rules.redacts_in_content)
    auth_events = [event.event_id for event in auth_state.values()]
    event_id: EventId | None = None
    hashes: dict[EventId, str] | None = None
    if rules.event_id_format is EventIdFormat.GIVEN:
        event_id = EventId(f"${signer.ids.letters(OPAQUE_LETTERS)}:{signer.server_name}")
        hashes = {event.event_id: hash_of(event) for event in auth_state.values()}
        hashes |= work.reference_hashes
    try:
        event = build_event(
            rules=rules,
            room_id=work.room_id,
            sender=sender,
            event_type=new.type,
            state_key=new.state_key,
            content=content,
            origin_server_ts=origin_server_ts,
            depth=min(work.depth + 1, MAX_INTEGER),
            prev_events=prev_events,
            auth_events=auth_events,
            server_name=signer.server_name,
            signing_key=signer.key,
            redacts=new.redacts,
            event_id=event_id,
            reference_hashes=hashes,
        )
    except InvalidEvent as error:
        if error.too_large:
            raise Refused(413, "M_TOO_LARGE", error.reason) from error
        raise Refused(400, "M_BAD_JSON", error.reason) from error
    verdict = check_auth(event, auth_state, create=work.create_event())
    if not isinstance(verdict, Accepted):
        raise Refused(403, "M_FORBIDDEN", verdict.reason)
    if event.type == "m.room.redaction":
        check_local_redaction(work, event)
    return event


def _normal_content(new: NewEvent, *, redacts_in_content: bool) -> dict[str, Any]:
    """A copy with sorted keys, as it will be read back from the PDU: records are the same from memory and storage."""
    content = new.content
    if new.redacts is not None and redacts_in_content:
        content = {**content, "redacts": new.redacts}
    try:
        copy: dict[str, Any] = orjson.loads(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    except (TypeError, orjson.JSONDecodeError) as error:
        raise Refused(400, "M_BAD_JSON", str(error)) from error
    return copy


def find_done(work: RoomWork, body: Append) -> EventId | None:
    """The membership event that already says what the command wants; refuses what expects another membership."""
    event = body.event
    if event.type != MEMBER or event.state_key is None or not (body.expect_membership or body.done_if_membership):
        return None
    current = work.state((MEMBER, event.state_key))
    membership = "leave" if current is None else current.membership or "leave"
    if current is not None and membership in body.done_if_membership:
        return current.event_id
    if body.expect_membership and membership not in body.expect_membership:
        errcode = "M_BAD_STATE" if body.expect_membership == ("ban",) else "M_FORBIDDEN"
        raise Refused(403, errcode, f"The user's membership in the room is {membership!r}")
    return None


def find_unchanged(work: RoomWork, event: Event) -> EventId | None:
    """The current state event that already says the same, by the same sender."""
    if event.state_key is None:
        return None
    current = work.state((event.type, event.state_key))
    if current is None or current.sender != event.sender or current.content != event.content:
        return None
    return current.event_id

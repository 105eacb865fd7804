"""Giving an accepted event its place in the room: its record, its rows and what it changes.

Spec: none; DESIGN.md section 4.
"""

from collections.abc import Mapping

import orjson

from matrixcore.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from matrixcore.events import Event, client_form
from matrixcore.identifiers import EventId, ServerName, StateKey, UserId
from matrixcore.power_levels import PowerLevels
from matrixcore.push_evaluation import default_outcome as default_push_outcome
from matrixcore.push_evaluation import may_notify
from matrixcore.relations import THREAD, Relation, find_thread, parse_relation
from matrixcore.visibility import HistoryVisibility, parse_history_visibility
from services.rooms.room_work import MEMBER, RoomWork, local_user
from tessera.commands import MembershipDelta
from tessera.records import Counters, EventBody, OrderKey, RecordKind
from tessera.storage.rooms import LoadedEvent, ThreadSums
from tessera.storage.writer_batch import EventRow, array_literal

HISTORY_VISIBILITY: StateKey = ("m.room.history_visibility", "")

# What an invitee or a knocker is shown of the room. Spec: C-S API §Stripped state.
STRIPPED: tuple[StateKey, ...] = (
    CREATE,
    ("m.room.name", ""),
    ("m.room.avatar", ""),
    ("m.room.topic", ""),
    JOIN_RULES,
    ("m.room.canonical_alias", ""),
    ("m.room.encryption", ""),
)


def place_event(
    work: RoomWork,
    event: Event,
    server_name: ServerName,
    *,
    sender_device: str | None = None,
    txn_id: str | None = None,
    forked: bool = False,
    becomes_current: bool = True,
    visibility: HistoryVisibility | None = None,
    redacted_by: EventId | None = None,
    original_pdu: bytes | None = None,
    forwarded: bool = False,
    servers: tuple[ServerName, ...] | None = None,
) -> int:
    """Append an accepted event to the room: record, rows, state, members, counters; its position.

    The extremities are the caller's to move (`RoomWork.advance`).

    Args:
        forked: the state before the event is not the room's current state.
        becomes_current: whether a state event wins its key (after a fork another one may).
        visibility: the history visibility before the event, where that is not the current one.
        redacted_by: `event` is already in its redacted form, because of this redaction.
        forwarded: another server's event that this one passes on to the rest of the room.
        servers: who must hear of the event; None for what `recipients` says.
    """
    position = work.partition.position + 1
    is_member = event.type == MEMBER and event.state_key is not None
    visibility = visibility or _history_visibility(work)
    servers = recipients(work, event, server_name) if servers is None else servers
    replaced = None
    stripped = None
    if event.state_key is not None and becomes_current:
        key = (event.type, event.state_key)
        replaced = work.state(key)
        work.set_state(key, event, position)
        if is_member:
            stripped = note_membership(work, event, replaced, position, server_name)
    relation = None if redacted_by is not None else parse_relation(event.content)
    root = _thread_of(work, relation)
    counters, mentions = _count(work, event, relation, root, position, server_name)
    body = EventBody(
        event.event_id,
        event.type,
        event.state_key,
        event.sender,
        event.origin_server_ts,
        client_form(event),
        event.membership if is_member and becomes_current else None,
        sender_device,
        txn_id,
        None if replaced is None else replaced.event_id,
        None if replaced is None else orjson.dumps(replaced.content),
        visibility.value,
        forked,
        servers,
        event.redacts,
        None if relation is None else relation.event_id,
        None if relation is None else relation.rel_type,
        root,
        counters,
        mentions,
        work.joined_count,
        work.invited_count,
        stripped,
        redacted_by is not None,
        forwarded,
    )
    work.record(RecordKind.EVENT, body, event.event_id)
    work.events[event.event_id] = _placed_row(work, event, body, position, relation, redacted_by, original_pdu)
    work.facts[event.event_id] = LoadedEvent(
        event.event_id,
        event.sender,
        OrderKey(position, 0),
        body.relates_to,
        body.rel_type,
        root,
        event.state_key,
        event.type,
        redacted_by is not None,
        bool(mentions),
        None,
    )
    if event.prev_events:
        part, room_id = work.partition.partition, work.room_id
        for prev_event in event.prev_events:
            work.add_row("edges", (part, room_id, prev_event, event.event_id))
    return position


def unplaced_row(
    work: RoomWork,
    event: Event,
    *,
    outlier: bool = False,
    rejected: str | None = None,
    soft_failed: str | None = None,
    forked: bool = False,
) -> EventRow:
    """The row of an event that has no place in the room's order."""
    relation = parse_relation(event.content)
    return EventRow(
        work.partition.partition,
        work.room_id,
        event.event_id,
        None,
        None,
        event.type,
        event.state_key,
        event.sender,
        _membership_column(event),
        event.depth,
        event.origin_server_ts,
        work.now_ms,
        outlier,
        rejected,
        soft_failed,
        forked,
        event.pdu,
        None,
        None,
        None,
        "shared",
        "{}",
        event.redacts,
        None,
        None,
        None if relation is None else relation.event_id,
        None if relation is None else relation.rel_type,
        None if relation is None else relation.key,
        None,
        0,
        0,
        0,
        0,
        "{}",
        0,
        0,
        None,
    )


def _membership_column(event: Event) -> str | None:
    """A member event's membership; None where it is no text that can be stored."""
    membership = event.membership if event.type == MEMBER else None
    return None if membership is None or "\0" in membership else membership


def strip(event: Event) -> dict[str, object]:
    """The stripped form of a state event. Spec: C-S API §Stripped state."""
    return {"content": event.content, "sender": event.sender, "state_key": event.state_key, "type": event.type}


def _placed_row(
    work: RoomWork,
    event: Event,
    body: EventBody,
    position: int,
    relation: Relation | None,
    redacted_by: EventId | None,
    original_pdu: bytes | None,
) -> EventRow:
    return EventRow(
        work.partition.partition,
        work.room_id,
        event.event_id,
        position,
        0,
        event.type,
        event.state_key,
        event.sender,
        body.membership,
        event.depth,
        event.origin_server_ts,
        work.now_ms,
        False,
        None,
        None,
        body.forked,
        event.pdu,
        body.sender_device,
        body.txn_id,
        body.replaces_state,
        body.history_visibility,
        array_literal(body.servers) if body.servers else "{}",
        event.redacts,
        redacted_by,
        original_pdu,
        body.relates_to,
        body.rel_type,
        None if relation is None else relation.key,
        body.thread_root,
        *body.counters,
        array_literal(body.mentions) if body.mentions else "{}",
        work.joined_count,
        work.invited_count,
        body.stripped_state,
        body.forwarded,
    )


def _history_visibility(work: RoomWork) -> HistoryVisibility:
    event = work.state(HISTORY_VISIBILITY)
    return parse_history_visibility(None if event is None else event.content.get("history_visibility"))


def recipients(work: RoomWork, event: Event, server_name: ServerName) -> tuple[ServerName, ...]:
    """The other servers that must hear of an event: those with members before it.

    Whose invite or knock comes to an end hears of it too, though without a member in the room. An invite itself is
    not for the invitee's server: that one has signed it before it became an event.
    """
    servers = work.other_servers(server_name)
    if event.type != MEMBER or event.state_key is None or event.membership not in ("leave", "ban"):
        return servers
    if work.membership(event.state_key) not in ("invite", "knock"):
        return servers
    target = ServerName(event.state_key.partition(":")[2])
    return servers if target in ("", server_name, *servers) else (*servers, target)


def note_membership(
    work: RoomWork, event: Event, replaced: Event | None, position: int, server_name: ServerName
) -> bytes | None:
    """Tell the command's outcome of a local user's membership; the stripped state of an invite or knock."""
    user_id = local_user(event.state_key, server_name)
    if user_id is None:
        return None
    membership = event.membership or "leave"
    stripped: bytes | None = None
    if membership in ("invite", "knock"):
        state = [found for key in STRIPPED if (found := work.state(key)) is not None]
        stripped = orjson.dumps([strip(found) for found in (*state, event)])
    before = None if replaced is None else replaced.membership
    work.memberships.append(
        MembershipDelta(user_id, membership, event.event_id, event.sender, position, stripped, before or "leave")
    )
    return stripped


def _thread_of(work: RoomWork, relation: Relation | None) -> EventId | None:
    if relation is None or relation.event_id is None:
        return None

    def relation_of(event_id: EventId) -> Relation | None:
        found = work.find_event(event_id)
        if found is None or found.relates_to is None:
            return None
        return Relation(found.rel_type, found.relates_to, None, False, None)

    return find_thread(relation, relation_of)


def _count(
    work: RoomWork,
    event: Event,
    relation: Relation | None,
    root: EventId | None,
    position: int,
    server_name: ServerName,
) -> tuple[Counters, tuple[UserId, ...]]:
    """Move the cumulative counters past an event; (their values after it, local users it mentions)."""

    def may_notify_room() -> bool:
        return _may_notify_room(work, event)

    push = default_push_outcome(
        event.type, event.state_key, event.sender, event.content, work.joined_count, may_notify_room
    )
    mentions: tuple[UserId, ...] = ()
    if push.mentioned_user_ids:
        mentions = tuple(
            sorted(
                user_id
                for user_id in push.mentioned_user_ids
                if local_user(user_id, server_name) is not None and work.membership(user_id) == "join"
            )
        )
        for user_id in mentions:
            work.add_row(
                "mentions",
                (work.partition.partition, work.room_id, user_id, position, root or "", event.event_id),
            )
    if root is None:
        work.notify_count += push.notify
        work.highlight_all_count += push.highlight_all
        return Counters(work.notify_count, work.highlight_all_count), mentions
    sums = work.thread(root) or ThreadSums(0, event.event_id, position, 0, 0)
    is_reply = relation is not None and relation.rel_type == THREAD
    sums = ThreadSums(
        sums.reply_count + is_reply,
        event.event_id if is_reply else sums.latest_event_id,
        position if is_reply else sums.latest_anchor,
        sums.notify_count + push.notify,
        sums.highlight_all_count + push.highlight_all,
    )
    work.thread_changes[root] = sums
    counters = Counters(work.notify_count, work.highlight_all_count, sums.notify_count, sums.highlight_all_count)
    return counters, mentions


def _may_notify_room(work: RoomWork, event: Event) -> bool:
    power_levels = work.state(POWER_LEVELS)
    levels = PowerLevels.of(power_levels, work.create_event())
    content: Mapping[str, object] = {} if power_levels is None else power_levels.content
    return may_notify(levels.user_level(event.sender), content.get("notifications"))

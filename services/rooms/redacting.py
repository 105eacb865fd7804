"""Redactions: the served bytes of the target are swapped with the redaction's commit.

Spec: C-S API §Redactions; Room Version 3 §Handling redactions.
"""

from matrixcore.auth_events import POWER_LEVELS
from matrixcore.auth_rules import check_redaction
from matrixcore.events import Event, client_form, load_event, redact_event
from matrixcore.identifiers import EventId
from matrixcore.power_levels import PowerLevels
from matrixcore.relations import THREAD
from matrixcore.verdicts import Accepted
from services.rooms.room_work import Refused, RoomWork
from tessera.records import RecordKind, RedactionBody
from tessera.storage.rooms import LoadedEvent


def check_local_redaction(work: RoomWork, redaction: Event) -> None:
    """Refuse a redaction of this server's own whose target is unknown or not the sender's to redact.

    What rooms make of other servers' redactions is no measure here: they take one among users of one server for
    granted, since that server has to see to it that its users redact their own events only.

    Spec: C-S API PUT /rooms/{roomId}/redact/{eventId}/{txnId}.

    Raises:
        Refused
    """
    target = find_target(work, redaction.redacts)
    if target is None:
        raise Refused(404, "M_NOT_FOUND", "The event to redact was not found in this room")
    if target.type == "m.room.create":
        raise Refused(403, "M_FORBIDDEN", "The create event of a room cannot be redacted")
    levels = PowerLevels.of(work.state(POWER_LEVELS), work.create_event())
    if target.sender != redaction.sender and not levels.may_redact_others(redaction.sender):
        raise Refused(403, "M_FORBIDDEN", "You may not redact events of others in this room")


def find_target(work: RoomWork, event_id: EventId | None) -> Event | None:
    """The event that a redaction names, if it is stored with its bytes."""
    if event_id is None:
        return None
    row = work.events.get(event_id)
    if row is not None:
        return load_event(row.pdu, event_id, work.rules, room_id=work.room_id)
    found = work.loaded.events.get((work.room_id, event_id))
    if found is None or found.pdu is None:
        return None
    return load_event(found.pdu, event_id, work.rules, room_id=work.room_id)


def may_apply(work: RoomWork, redaction: Event, target: Event) -> bool:
    """Whether an accepted redaction takes effect on its target."""
    levels = PowerLevels.of(work.state(POWER_LEVELS), work.create_event())
    return isinstance(check_redaction(redaction, target, levels), Accepted)


def apply_redaction(work: RoomWork, redaction: Event) -> None:
    """Swap the target of a placed redaction, if it is there, allowed and not redacted yet."""
    assert redaction.redacts is not None
    target = find_target(work, redaction.redacts)
    facts = work.find_event(redaction.redacts)
    if target is None or facts is None or facts.is_redacted or not may_apply(work, redaction, target):
        return
    redacted = redact_event(target)
    _swap_row(work, redacted, redaction.event_id, facts)
    _swap_state(work, redacted)
    work.facts[facts.event_id] = facts._replace(is_redacted=True, relates_to=None, rel_type=None, pdu=redacted.pdu)
    if facts.order is not None:
        _uncount_reply(work, facts)
        body = RedactionBody(facts.event_id, redaction.event_id, client_form(redacted), facts.order)
        work.record(RecordKind.REDACTION_APPLIED, body, facts.event_id)


def _swap_row(work: RoomWork, redacted: Event, redaction_id: EventId, facts: LoadedEvent) -> None:
    part, room_id = work.partition.partition, work.room_id
    row = work.events.get(redacted.event_id)
    if row is not None:
        work.events[redacted.event_id] = row._replace(
            pdu=redacted.pdu,
            original_pdu=row.pdu,
            redacted_by=redaction_id,
            relates_to=None,
            rel_type=None,
            relation_key=None,
        )
        if facts.is_mentioning and facts.order is not None:
            rows = work.rows.get("mentions", [])
            work.rows["mentions"] = [mention for mention in rows if mention[3] != facts.order.anchor]
        return
    work.add_row("redacted", (part, room_id, redacted.event_id, redaction_id, redacted.pdu))
    if facts.is_mentioning and facts.order is not None:
        work.add_row("mentions_gone", (part, room_id, facts.order.anchor))


def _swap_state(work: RoomWork, redacted: Event) -> None:
    """A redacted event of current state stays in it, with what redaction leaves."""
    if redacted.state_key is None:
        return
    key = (redacted.type, redacted.state_key)
    known = work.state_changes.get(key) or work.hot.state.get(key)
    if known is not None and known.event_id == redacted.event_id:
        work.state_changes[key] = redacted


def _uncount_reply(work: RoomWork, facts: LoadedEvent) -> None:
    if facts.rel_type != THREAD or facts.thread_root is None:
        return
    sums = work.thread(facts.thread_root)
    if sums is not None and sums.reply_count > 0:
        work.thread_changes[facts.thread_root] = sums._replace(reply_count=sums.reply_count - 1)

"""The authorisation rules of all room versions.

Rules are named by what they say; their numbers differ between versions (those in the comments
are of version 11, unless another is named). Every event is checked by `check_auth_events`
against what it cites, and by `check_auth` against up to three states: that of its auth events,
the one before it, and the room's current one (`check_current_state`).

Spec: Room Versions §Authorisation rules; S-S API §Checks performed on receipt of a PDU.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from matrixcore.auth_events import CREATE, POWER_LEVELS, auth_state_keys
from matrixcore.auth_rules_member import check_member
from matrixcore.auth_rules_power import check_power_levels
from matrixcore.events import Event, State
from matrixcore.identifiers import EventId, InvalidIdentifier, StateKey, parse_user_id, server_of
from matrixcore.power_levels import PowerLevels
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.verdicts import ACCEPTED, Accepted, Rejected, SoftFailed


def check_auth_events(
    event: Event, auth_events: Sequence[Event], rejected: Collection[EventId] = frozenset()
) -> Accepted | Rejected:
    """Rule 2 (3 in version 12): what an event cites as its permission must be what it should cite.

    Args:
        auth_events: the events of `event.auth_events`, all of them.
        rejected: IDs of those that were rejected themselves.
    """
    if event.type == "m.room.create":
        return ACCEPTED  # rule 1 decides before rule 2
    allowed = set(auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules))
    seen: set[StateKey] = set()
    for cited in auth_events:
        key = (cited.type, cited.state_key) if cited.state_key is not None else None
        if key in seen:
            return Rejected("auth_events cite the same state twice")  # 2.1
        if key is None or key not in allowed:
            return Rejected("auth_events cite an event that gives no permission")  # 2.2
        if cited.event_id in rejected:
            return Rejected("auth_events cite a rejected event")  # 2.3
        if cited.room_id != event.room_id:
            return Rejected("auth_events cite an event of another room")  # 2.5
        seen.add(key)
    if not event.rules.room_id_is_create_event_id and CREATE not in seen:
        return Rejected("auth_events lack the create event")  # 2.4
    return ACCEPTED


def check_auth(event: Event, state: State, *, create: Event | None = None) -> Accepted | Rejected:
    """All rules but 2: whether a state of the room allows an event.

    That the servers of `event_signing.required_signers` have signed (rule 4.2 too) is the
    caller's to check, before.

    Args:
        state: at least what it has of the keys of `auth_state_keys`.
        create: the accepted create event of the room, for states that need not hold it (those
            made of auth events in version 12, and the empty one that resolution v2.1 starts with).
    """
    if event.type == "m.room.create":
        return _check_create(event)
    create = create or state.get(CREATE)
    if create is None:
        return Rejected("the room has no create event")
    if create.room_id != event.room_id:
        return Rejected("the create event is of another room")  # 2 in version 12
    if create.content.get("m.federate") is False and server_of(event.sender) != server_of(create.sender):
        return Rejected("the room does not federate")  # 3
    if event.type == "m.room.aliases" and event.rules.special_case_aliases_auth:
        return _check_aliases(event)  # 4 up to version 5
    levels = PowerLevels.of(state.get(POWER_LEVELS), create)
    if event.type == "m.room.member":
        return check_member(event, state, create, levels)  # 4
    sender_member = state.get(("m.room.member", event.sender))
    if sender_member is None or sender_member.content.get("membership") != "join":
        return Rejected("the sender is not in the room")  # 5
    if event.type == "m.room.third_party_invite":
        return ACCEPTED if levels.may_invite(event.sender) else Rejected("the sender may not invite")  # 6
    if not levels.may_send(event.sender, event.type, is_state=event.state_key is not None):
        return Rejected(f"the sender's power does not suffice for {event.type}")  # 7
    if event.state_key is not None and event.state_key.startswith("@") and event.state_key != event.sender:
        return Rejected("the state key is another user's ID")  # 8
    further = _FURTHER_CHECKS.get(event.type)
    return ACCEPTED if further is None else further(event, levels)  # 9, 10


def check_current_state(event: Event, current_state: State, *, create: Event | None = None) -> Accepted | SoftFailed:
    """Check 6 on receipt: an event that its place in the DAG allows, but the room as it is now does not."""
    verdict = check_auth(event, current_state, create=create)
    return verdict if isinstance(verdict, Accepted) else SoftFailed(verdict.reason)


def check_redaction(redaction: Event, target: Event, levels: PowerLevels) -> Accepted | Rejected:
    """Whether an accepted redaction may be applied to its target.

    In versions 1 and 2 the authorisation of the redaction has settled that.

    Args:
        levels: of the state before the redaction.

    Spec: Room Version 3 §Handling redactions.
    """
    if redaction.redacts != target.event_id or redaction.room_id != target.room_id:
        return Rejected("the redaction names another event")
    if not redaction.rules.redaction_needs_no_auth_rule:
        return ACCEPTED
    if levels.may_redact_others(redaction.sender) or server_of(redaction.sender) == server_of(target.sender):
        return ACCEPTED
    return Rejected("the sender may not redact events of others")


def _check_create(event: Event) -> Accepted | Rejected:
    """Rule 1."""
    rules = event.rules
    if event.prev_events:
        return Rejected("a create event must not have prev_events")
    if rules.room_id_is_create_event_id:
        if "room_id" in event.fields:
            return Rejected("a create event must not have a room_id")
    elif event.room_id.partition(":")[2] != server_of(event.sender):
        return Rejected("the room ID is not of the sender's server")
    version = event.content.get("room_version", "1")
    if not isinstance(version, str) or version not in ROOM_VERSIONS:
        return Rejected("unknown room version")
    if rules.privileged_creators and "additional_creators" in event.content:
        return _check_additional_creators(event.content["additional_creators"])
    if not rules.implicit_room_creator and "creator" not in event.content:
        return Rejected("a create event must name the creator")
    return ACCEPTED


def _check_additional_creators(value: object) -> Accepted | Rejected:
    """Rule 1.4 of version 12."""
    if not isinstance(value, list):
        return Rejected("additional_creators must be an array")
    try:
        for user_id in value:
            parse_user_id(user_id)
    except InvalidIdentifier as error:
        return Rejected(f"additional_creators: {error}")
    return ACCEPTED


def _check_aliases(event: Event) -> Accepted | Rejected:
    """Rule 4 of versions 1 to 5."""
    if event.state_key is None:
        return Rejected("m.room.aliases must have a state key")
    if event.state_key != server_of(event.sender):
        return Rejected("the state key is not the sender's server")
    return ACCEPTED


def _check_redaction_event(event: Event, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 11 of versions 1 and 2."""
    if event.rules.redaction_needs_no_auth_rule or levels.may_redact_others(event.sender):
        return ACCEPTED
    if event.redacts is not None and event.redacts.partition(":")[2] == event.event_id.partition(":")[2]:
        return ACCEPTED
    return Rejected("the sender may not redact events of others")


_FURTHER_CHECKS: Final[Mapping[str, Callable[[Event, PowerLevels], Accepted | Rejected]]] = {
    "m.room.power_levels": check_power_levels,
    "m.room.redaction": _check_redaction_event,
}

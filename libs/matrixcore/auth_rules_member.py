"""The authorisation rules for m.room.member.

Spec: Room Versions §Authorisation rules, rule 4 of versions 6 to 11 (5 in versions 1 to 5 and 12).
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from matrixcore.auth_events import JOIN_RULES, third_party_token
from matrixcore.canonical_json import InvalidJson
from matrixcore.events import Event, State
from matrixcore.identifiers import InvalidIdentifier, parse_user_id
from matrixcore.power_levels import PowerLevels
from matrixcore.signing import (
    decode_base64,
    signed_bytes,
    signing_key_ids,
    verify_signature,
)
from matrixcore.verdicts import ACCEPTED, Accepted, Rejected

# Each pair of a key and a signature of a third-party invite costs a verification (about 60 µs);
# honest invites have at most a few.
_MAX_THIRD_PARTY_VERIFICATIONS = 256


def check_member(event: Event, state: State, create: Event, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 4. That `join_authorised_via_users_server` has signed (4.2) is checked before."""
    target, membership = event.state_key, event.content.get("membership")
    if target is None or membership is None:
        return Rejected("a member event needs a state key and a membership")  # 4.1
    if event.rules.restricted_joins and "join_authorised_via_users_server" in event.content:
        try:
            parse_user_id(event.content["join_authorised_via_users_server"])
        except InvalidIdentifier:
            return Rejected("join_authorised_via_users_server is no user ID")  # 4.2: nobody could have signed
    match membership:
        case "join":
            return _check_join(event, target, state, create, levels)
        case "invite":
            return _check_invite(event, target, state, levels)
        case "leave":
            return _check_leave(event, target, state, levels)
        case "ban":
            return _check_ban(event, target, state, levels)
        case "knock" if event.rules.knocking:
            return _check_knock(event, target, state)
        case _:
            return Rejected("unknown membership")  # 4.8


def membership_in(state: State, user_id: str) -> str | None:
    """A user's membership in a state; None where there is no member event."""
    member = state.get(("m.room.member", user_id))
    return None if member is None else member.membership


def join_rule_in(state: State) -> str:
    """The join rule of a state; without an event, or without a rule in it, it is `invite`."""
    join_rules = state.get(JOIN_RULES)
    rule = None if join_rules is None else join_rules.content.get("join_rule", "invite")
    return rule if isinstance(rule, str) else "invite"


def _check_join(event: Event, target: str, state: State, create: Event, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 4.3."""
    creator = create.sender if event.rules.implicit_room_creator else create.content.get("creator")
    if event.prev_events == (create.event_id,) and target == creator:
        return ACCEPTED  # 4.3.1
    if event.sender != target:
        return Rejected("nobody can join for somebody else")  # 4.3.2
    membership = membership_in(state, target)
    if membership == "ban":
        return Rejected("the user is banned")  # 4.3.3
    rule, rules = join_rule_in(state), event.rules
    if rule == "public":
        return ACCEPTED  # 4.3.6
    is_restricted = (rule == "restricted" and rules.restricted_joins) or (
        rule == "knock_restricted" and rules.knock_restricted
    )
    admits_invited = rule == "invite" or (rule == "knock" and rules.knocking) or is_restricted
    if admits_invited and membership in ("join", "invite"):
        return ACCEPTED  # 4.3.4, 4.3.5.1
    if is_restricted:
        return _check_authoriser(event.content.get("join_authorised_via_users_server"), state, levels)
    return Rejected("the user is not invited")  # 4.3.7


def _check_authoriser(authoriser: object, state: State, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 4.3.5.2: a restricted join is vouched for by a member who may invite."""
    if not isinstance(authoriser, str):
        return Rejected("the join is not authorised by a member")
    if membership_in(state, authoriser) != "join":
        return Rejected("the authorising user is not in the room")
    if not levels.may_invite(authoriser):
        return Rejected("the authorising user may not invite")
    return ACCEPTED


def _check_invite(event: Event, target: str, state: State, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 4.4."""
    if "third_party_invite" in event.content:
        return _check_third_party_invite(event, target, state)
    if membership_in(state, event.sender) != "join":
        return Rejected("the sender is not in the room")  # 4.4.2
    if membership_in(state, target) in ("join", "ban"):
        return Rejected("the user is in the room already, or banned")  # 4.4.3
    if not levels.may_invite(event.sender):
        return Rejected("the sender may not invite")  # 4.4.5
    return ACCEPTED


def _check_third_party_invite(event: Event, target: str, state: State) -> Accepted | Rejected:
    """Rule 4.4.1: an invite that an identity server has turned from an address into a user ID."""
    if membership_in(state, target) == "ban":
        return Rejected("the user is banned")
    invite = event.content["third_party_invite"]
    signed = invite.get("signed") if isinstance(invite, Mapping) else None
    if not isinstance(signed, Mapping):
        return Rejected("the third-party invite is not signed")
    token = third_party_token(event.content)
    if token is None or "mxid" not in signed:
        return Rejected("the third-party invite lacks mxid or token")
    if signed["mxid"] != target:
        return Rejected("the third-party invite is for somebody else")
    stored = state.get(("m.room.third_party_invite", token))
    if stored is None:
        return Rejected("the room does not know this third-party invite")
    if stored.sender != event.sender:
        return Rejected("the third-party invite is from somebody else")
    if not _is_signed_by_any(signed, _public_keys(stored.content)):
        return Rejected("the third-party invite is signed with an unknown key")
    return ACCEPTED


def _public_keys(content: Mapping[str, Any]) -> list[bytes]:
    """The public keys of an m.room.third_party_invite event."""
    listed = content.get("public_keys")
    candidates = [content.get("public_key")]
    if isinstance(listed, list):
        candidates.extend(entry.get("public_key") for entry in listed if isinstance(entry, Mapping))
    keys: list[bytes] = []
    for text in candidates:
        if isinstance(text, str):
            with suppress(ValueError):  # not base64: no key
                keys.append(decode_base64(text))
    return keys


def _is_signed_by_any(signed: Mapping[str, Any], public_keys: list[bytes]) -> bool:
    signatures = signed.get("signatures")
    if not isinstance(signatures, Mapping):
        return False
    claimed = [signatures[signer][key_id] for signer in signatures for key_id in signing_key_ids(signed, signer)]
    if len(claimed) * len(public_keys) > _MAX_THIRD_PARTY_VERIFICATIONS:
        return False
    try:
        message = signed_bytes(signed)
    except InvalidJson:
        return False
    return any(verify_signature(message, signature, key) for signature in claimed for key in public_keys)


def _check_leave(event: Event, target: str, state: State, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 4.5: leaving, rejecting an invite, kicking, unbanning."""
    if event.sender == target:
        can_be_left = ("invite", "join", "knock") if event.rules.knocking else ("invite", "join")
        if membership_in(state, target) in can_be_left:
            return ACCEPTED  # 4.5.1
        return Rejected("the user is not in the room")
    if membership_in(state, event.sender) != "join":
        return Rejected("the sender is not in the room")  # 4.5.2
    if membership_in(state, target) == "ban" and levels.user_level(event.sender) < levels.named("ban"):
        return Rejected("the sender may not unban")  # 4.5.3
    if levels.may_kick(event.sender, target):
        return ACCEPTED  # 4.5.4
    return Rejected("the sender may not kick this user")


def _check_ban(event: Event, target: str, state: State, levels: PowerLevels) -> Accepted | Rejected:
    """Rule 4.6."""
    if membership_in(state, event.sender) != "join":
        return Rejected("the sender is not in the room")
    if levels.may_ban(event.sender, target):
        return ACCEPTED
    return Rejected("the sender may not ban this user")


def _check_knock(event: Event, target: str, state: State) -> Accepted | Rejected:
    """Rule 4.7."""
    rule = join_rule_in(state)
    if rule != "knock" and not (rule == "knock_restricted" and event.rules.knock_restricted):
        return Rejected("the room cannot be knocked on")
    if event.sender != target:
        return Rejected("nobody can knock for somebody else")
    if membership_in(state, event.sender) in ("ban", "invite", "join"):
        return Rejected("the user is invited, in the room, or banned")
    return ACCEPTED

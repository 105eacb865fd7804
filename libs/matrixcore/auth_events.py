"""Which state gives an event its permission. Spec: S-S API §Auth events selection."""

from collections.abc import Mapping
from typing import Any

from matrixcore.identifiers import StateKey
from matrixcore.room_versions import RoomVersionRules

CREATE: StateKey = ("m.room.create", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")
JOIN_RULES: StateKey = ("m.room.join_rules", "")


def auth_state_keys(
    event_type: str,
    state_key: str | None,
    sender: str,
    content: Mapping[str, Any],
    rules: RoomVersionRules,
) -> list[StateKey]:
    """The keys of the state that an event cites in `auth_events`, without duplicates.

    Keys that the room's state lacks are left out by whoever makes the event. The authorisation
    rules look at no other key, save at `CREATE`, which version 12 does not cite.
    """
    if event_type == "m.room.create":
        return []
    keys: list[StateKey] = [] if rules.room_id_is_create_event_id else [CREATE]
    keys.append(POWER_LEVELS)
    keys.append(("m.room.member", sender))
    if event_type == "m.room.member" and state_key is not None:
        keys.extend(_member_keys(state_key, sender, content, rules))
    return keys


def _member_keys(target: str, sender: str, content: Mapping[str, Any], rules: RoomVersionRules) -> list[StateKey]:
    keys: list[StateKey] = []
    membership = content.get("membership")
    if target != sender:
        keys.append(("m.room.member", target))
    if membership in ("join", "invite", "knock"):
        keys.append(JOIN_RULES)
    if membership == "invite":
        token = third_party_token(content)
        if token is not None:
            keys.append(("m.room.third_party_invite", token))
    if membership == "join" and rules.restricted_joins:
        authoriser = content.get("join_authorised_via_users_server")
        if isinstance(authoriser, str) and authoriser not in (target, sender):
            keys.append(("m.room.member", authoriser))
    return keys


def third_party_token(content: Mapping[str, Any]) -> str | None:
    """`third_party_invite.signed.token` of an invite, if it is there and a string."""
    invite = content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, Mapping) else None
    token = signed.get("token") if isinstance(signed, Mapping) else None
    return token if isinstance(token, str) else None

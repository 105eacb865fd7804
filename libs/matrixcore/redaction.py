"""What is left of an event when it is redacted. Spec: Room Versions §Redactions."""

from collections.abc import Mapping
from typing import Any

from matrixcore.room_versions import RoomVersionRules

_KEPT = frozenset(
    (
        "event_id",
        "type",
        "room_id",
        "sender",
        "state_key",
        "content",
        "hashes",
        "signatures",
        "depth",
        "prev_events",
        "auth_events",
        "origin_server_ts",
    )
)
_KEPT_UNTIL_V10 = _KEPT | {"prev_state", "origin", "membership"}

_POWER_LEVEL_KEYS = ("ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default")


def redact(fields: Mapping[str, Any], rules: RoomVersionRules) -> dict[str, Any]:
    """The protected part of an event, as a new dict; values that stay are shared with `fields`.

    Idempotent, and it changes neither signatures nor event ID (those cover this part alone).
    """
    kept = _KEPT if rules.updated_redaction_rules else _KEPT_UNTIL_V10
    redacted = {key: value for key, value in fields.items() if key in kept}
    content = redacted.get("content")
    if content:
        redacted["content"] = redact_content(fields.get("type"), content, rules)
    return redacted


def redact_content(event_type: object, content: Mapping[str, Any], rules: RoomVersionRules) -> Mapping[str, Any]:
    """The keys of a content that survive redaction."""
    if event_type == "m.room.create" and rules.updated_redaction_rules:
        return content
    keys = _kept_content_keys(event_type, rules)
    kept = {key: content[key] for key in keys if key in content}
    if event_type == "m.room.member" and rules.updated_redaction_rules:
        third_party_invite = content.get("third_party_invite")
        if isinstance(third_party_invite, Mapping):
            # Only `signed` below it is protected; the object itself stays even if that leaves it empty.
            signed = {key: third_party_invite[key] for key in ("signed",) if key in third_party_invite}
            kept["third_party_invite"] = signed
    return kept


def _kept_content_keys(event_type: object, rules: RoomVersionRules) -> tuple[str, ...]:
    match event_type:
        case "m.room.member":
            if rules.restricted_join_authorised_via_kept:
                return ("membership", "join_authorised_via_users_server")
            return ("membership",)
        case "m.room.create":
            return ("creator",)
        case "m.room.join_rules":
            return ("join_rule", "allow") if rules.restricted_joins else ("join_rule",)
        case "m.room.power_levels":
            return (*_POWER_LEVEL_KEYS, "invite") if rules.updated_redaction_rules else _POWER_LEVEL_KEYS
        case "m.room.aliases" if rules.special_case_aliases_auth:
            return ("aliases",)
        case "m.room.history_visibility":
            return ("history_visibility",)
        case "m.room.redaction" if rules.redacts_in_content:
            return ("redacts",)
        case _:
            return ()

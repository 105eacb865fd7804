"""What differs between room versions, as one frozen record for each.

Spec: Room Versions. Nobody outside this module compares version strings.
"""

from dataclasses import dataclass, replace
from enum import Enum


class EventIdFormat(Enum):
    """Where an event's ID comes from."""

    GIVEN = "given"  # versions 1 and 2: `event_id` is part of the event, `$opaque:domain`
    HASH_BASE64 = "hash_base64"  # version 3
    HASH_URLSAFE = "hash_urlsafe"  # version 4 on


class StateResolution(Enum):
    """The algorithm that merges forked state."""

    V1 = "v1"
    V2 = "v2"
    V2_1 = "v2.1"


@dataclass(frozen=True, slots=True)
class RoomVersionRules:
    """The rules of one room version.

    Each flag names the rule it switches and the version that introduced it.
    """

    version: str
    event_id_format: EventIdFormat
    state_resolution: StateResolution
    strict_canonical_json: bool  # 6: integers only, within +-(2**53 - 1)
    special_case_aliases_auth: bool  # up to 5: m.room.aliases has an auth rule and keeps `aliases` on redaction
    enforce_key_validity: bool  # 5: signing keys must be valid at origin_server_ts
    limit_notifications_power_levels: bool  # 6: `notifications` of power levels is checked as well
    knocking: bool  # 7
    restricted_joins: bool  # 8
    restricted_join_authorised_via_kept: bool  # 9: redaction keeps join_authorised_via_users_server
    knock_restricted: bool  # 10
    integer_power_levels: bool  # 10: power levels are integers, not strings of digits
    updated_redaction_rules: bool  # 11: create keeps all its content, `redacts` moves to content, ...
    implicit_room_creator: bool  # 11: the creator is the create event's sender
    redacts_in_content: bool  # 11
    redaction_needs_no_auth_rule: bool  # 3: m.room.redaction is authorised like any event and applied separately
    room_id_is_create_event_id: bool  # 12: room IDs are `!` + hash of the create event
    privileged_creators: bool  # 12: creators have infinite power, additional_creators


_V1 = RoomVersionRules(
    version="1",
    event_id_format=EventIdFormat.GIVEN,
    state_resolution=StateResolution.V1,
    strict_canonical_json=False,
    special_case_aliases_auth=True,
    enforce_key_validity=False,
    limit_notifications_power_levels=False,
    knocking=False,
    restricted_joins=False,
    restricted_join_authorised_via_kept=False,
    knock_restricted=False,
    integer_power_levels=False,
    updated_redaction_rules=False,
    implicit_room_creator=False,
    redacts_in_content=False,
    redaction_needs_no_auth_rule=False,
    room_id_is_create_event_id=False,
    privileged_creators=False,
)
_V2 = replace(_V1, version="2", state_resolution=StateResolution.V2)
_V3 = replace(_V2, version="3", event_id_format=EventIdFormat.HASH_BASE64, redaction_needs_no_auth_rule=True)
_V4 = replace(_V3, version="4", event_id_format=EventIdFormat.HASH_URLSAFE)
_V5 = replace(_V4, version="5", enforce_key_validity=True)
_V6 = replace(
    _V5,
    version="6",
    strict_canonical_json=True,
    special_case_aliases_auth=False,
    limit_notifications_power_levels=True,
)
_V7 = replace(_V6, version="7", knocking=True)
_V8 = replace(_V7, version="8", restricted_joins=True)
_V9 = replace(_V8, version="9", restricted_join_authorised_via_kept=True)
_V10 = replace(_V9, version="10", knock_restricted=True, integer_power_levels=True)
_V11 = replace(
    _V10,
    version="11",
    updated_redaction_rules=True,
    implicit_room_creator=True,
    redacts_in_content=True,
)
_V12 = replace(
    _V11,
    version="12",
    state_resolution=StateResolution.V2_1,
    room_id_is_create_event_id=True,
    privileged_creators=True,
)

ROOM_VERSIONS: dict[str, RoomVersionRules] = {
    rules.version: rules for rules in (_V1, _V2, _V3, _V4, _V5, _V6, _V7, _V8, _V9, _V10, _V11, _V12)
}

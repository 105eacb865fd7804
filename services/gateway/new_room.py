"""What a new room begins with: the contents of its first events, from a createRoom request.

Pure: no room, no account and no clock is asked. Spec: C-S API §Creation, POST /createRoom.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, RoomAlias, UserId, parse_user_id
from matrixcore.room_versions import RoomVersionRules
from tessera.commands import NewEvent

MAX_INVITES = 100
MAX_INITIAL_STATE = 200
CREATOR_LEVEL = 100
TOMBSTONE_LEVEL = 150  # version 12: above state_default and every ordinary administrator

# preset: (join rule, guest access)
PRESETS: Mapping[str, tuple[str, str]] = {
    "private_chat": ("invite", "can_join"),
    "trusted_private_chat": ("invite", "can_join"),
    "public_chat": ("public", "forbidden"),
}
_MADE_BY_THE_SERVER = frozenset(("m.room.create", "m.room.member"))


class InvalidRoomRequest(ValueError):
    """The request's parts do not make a room (400). `errcode` says which way."""

    def __init__(self, reason: str, errcode: str = "M_INVALID_PARAM") -> None:
        super().__init__(reason)
        self.errcode = errcode


@dataclass(frozen=True, slots=True)
class MemberProfile:
    """What a member event shows of its user."""

    displayname: str | None = None
    avatar_url: str | None = None

    def content(self, membership: str) -> dict[str, Any]:
        """The content of a member event."""
        content: dict[str, Any] = {"membership": membership}
        if self.displayname is not None:
            content["displayname"] = self.displayname
        if self.avatar_url is not None:
            content["avatar_url"] = self.avatar_url
        return content


@dataclass(frozen=True, slots=True)
class NewRoom:
    """A createRoom request, checked."""

    creator: UserId
    rules: RoomVersionRules
    preset: str
    is_public: bool
    is_direct: bool = False
    alias: RoomAlias | None = None
    name: str | None = None
    topic: str | None = None
    invitees: tuple[UserId, ...] = ()
    creation_content: Mapping[str, Any] = field(default_factory=dict)
    initial_state: tuple[NewEvent, ...] = ()
    power_level_override: Mapping[str, Any] = field(default_factory=dict)


def parse_new_room(
    body: Mapping[str, Any], creator: UserId, rules: RoomVersionRules, alias: RoomAlias | None
) -> NewRoom:
    """Check the body of a createRoom request.

    Args:
        alias: of room_alias_name, which the caller has checked.

    Raises:
        InvalidRoomRequest
    """
    visibility = _typed(body, "visibility", str) or "private"
    if visibility not in ("public", "private"):
        raise InvalidRoomRequest("visibility must be 'public' or 'private'")
    preset = _typed(body, "preset", str) or ("public_chat" if visibility == "public" else "private_chat")
    if preset not in PRESETS:
        raise InvalidRoomRequest("preset is not known")
    if body.get("invite_3pid"):
        raise InvalidRoomRequest("this server does not invite by e-mail or telephone number", "M_THREEPID_DENIED")
    return NewRoom(
        creator,
        rules,
        preset,
        visibility == "public",
        _typed(body, "is_direct", bool) or False,
        alias,
        _typed(body, "name", str),
        _typed(body, "topic", str),
        _parse_invitees(_typed(body, "invite", list) or [], creator),
        _typed(body, "creation_content", dict) or {},
        _parse_initial_state(_typed(body, "initial_state", list) or []),
        _typed(body, "power_level_content_override", dict) or {},
    )


def create_content(room: NewRoom) -> dict[str, Any]:
    """The content of m.room.create.

    Raises:
        InvalidRoomRequest: additional_creators is no list of user IDs.
    """
    content = {key: value for key, value in room.creation_content.items() if key != "creator"}
    content["room_version"] = room.rules.version
    if not room.rules.implicit_room_creator:
        content["creator"] = room.creator
    if room.rules.privileged_creators and (creators := _additional_creators(room)):
        content["additional_creators"] = creators
    return content


def first_events(
    room: NewRoom, profiles: Mapping[UserId, MemberProfile], *, later: Collection[UserId] = ()
) -> tuple[NewEvent, ...]:
    """Everything after m.room.create, in the order that the specification gives.

    Args:
        profiles: of the creator and the invitees; who is not in it has none.
        later: invitees whose invites are not among these events.
    """
    own = profiles.get(room.creator, MemberProfile())
    given = {(event.type, event.state_key) for event in room.initial_state}
    events = [NewEvent("m.room.member", room.creator, own.content("join"))]
    events.append(_power_levels_event(room))
    if room.alias is not None:
        events.append(NewEvent("m.room.canonical_alias", "", {"alias": room.alias}))
    events += [event for event in _preset_events(room.preset) if (event.type, "") not in given]
    overridden = {("m.room.power_levels", "")}
    overridden |= {("m.room.name", "")} if room.name is not None else set()
    overridden |= {("m.room.topic", "")} if room.topic is not None else set()
    events += [event for event in room.initial_state if (event.type, event.state_key) not in overridden]
    if room.name is not None:
        events.append(NewEvent("m.room.name", "", {"name": room.name}))
    if room.topic is not None:
        events.append(NewEvent("m.room.topic", "", topic_content(room.topic)))
    for invitee in (one for one in room.invitees if one not in later):
        content = profiles.get(invitee, MemberProfile()).content("invite")
        if room.is_direct:
            content["is_direct"] = True
        events.append(NewEvent("m.room.member", invitee, content))
    return tuple(events)


def topic_content(topic: str) -> dict[str, Any]:
    """A topic as plain text. Spec: §m.room.topic."""
    return {"topic": topic, "m.topic": {"m.text": [{"mimetype": "text/plain", "body": topic}]}}


def default_power_levels(room: NewRoom) -> dict[str, Any]:
    """The levels of a new room before the request's own are laid over them."""
    users: dict[str, int] = {}
    if not room.rules.privileged_creators:
        users[room.creator] = CREATOR_LEVEL
        if room.preset == "trusted_private_chat":
            users |= dict.fromkeys(room.invitees, CREATOR_LEVEL)
    return {
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": TOMBSTONE_LEVEL if room.rules.privileged_creators else 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 50 if room.preset == "public_chat" else 0,
    }


def _power_levels_event(room: NewRoom) -> NewEvent:
    """The levels: those of initial_state if it has any, else the defaults; the override comes on top."""
    content = default_power_levels(room)
    for event in room.initial_state:
        if (event.type, event.state_key) == ("m.room.power_levels", ""):
            content = dict(event.content)
    return NewEvent("m.room.power_levels", "", {**content, **room.power_level_override})


def _preset_events(preset: str) -> list[NewEvent]:
    join_rule, guest_access = PRESETS[preset]
    return [
        NewEvent("m.room.join_rules", "", {"join_rule": join_rule}),
        NewEvent("m.room.history_visibility", "", {"history_visibility": "shared"}),
        NewEvent("m.room.guest_access", "", {"guest_access": guest_access}),
    ]


def _additional_creators(room: NewRoom) -> list[UserId]:
    given = room.creation_content.get("additional_creators", [])
    if not isinstance(given, list):
        raise InvalidRoomRequest("creation_content.additional_creators must be a list")
    creators = [_parse_user(value, "creation_content.additional_creators") for value in given]
    if room.preset == "trusted_private_chat":
        creators += room.invitees
    return [user_id for user_id in dict.fromkeys(creators) if user_id != room.creator]


def _parse_invitees(values: Sequence[object], creator: UserId) -> tuple[UserId, ...]:
    if len(values) > MAX_INVITES:
        raise InvalidRoomRequest(f"invite must not have more than {MAX_INVITES} users")
    invitees = dict.fromkeys(_parse_user(value, "invite") for value in values)
    if creator in invitees:
        raise InvalidRoomRequest("invite must not contain yourself")
    return tuple(invitees)


def _parse_initial_state(values: Sequence[object]) -> tuple[NewEvent, ...]:
    if len(values) > MAX_INITIAL_STATE:
        raise InvalidRoomRequest(f"initial_state must not have more than {MAX_INITIAL_STATE} events")
    events = []
    for value in values:
        if not isinstance(value, dict):
            raise InvalidRoomRequest("initial_state must consist of objects", "M_BAD_JSON")
        event_type, content = _typed(value, "type", str), _typed(value, "content", dict)
        if event_type is None or content is None:
            raise InvalidRoomRequest("initial_state: type and content are needed", "M_BAD_JSON")
        if event_type in _MADE_BY_THE_SERVER:
            raise InvalidRoomRequest(f"initial_state must not contain {event_type}", "M_INVALID_ROOM_STATE")
        events.append(NewEvent(event_type, _typed(value, "state_key", str) or "", content))
    return tuple(events)


def _parse_user(value: object, name: str) -> UserId:
    try:
        return parse_user_id(value)
    except InvalidIdentifier as error:
        raise InvalidRoomRequest(f"{name}: {error}") from None


def _typed(body: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """A member of the body that is missing, null or of this type."""
    value = body.get(name)
    if value is not None and type(value) is not kind:
        raise InvalidRoomRequest(f"{name} must be of type {kind.__name__}", "M_BAD_JSON")
    return value

"""Rooms as they stand in an answer. Spec: MSC4186 §RoomResult, Appendix."""

from collections.abc import Set
from typing import Any

import orjson

from matrixcore.identifiers import UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.sync.rendering import EventRenderer
from services.sync.sliding.request import Form, Json
from services.sync.sliding.room_reading import ReadRoom
from services.sync.sliding.windows import WantedRoom
from services.sync.sync_request import NO_FILTER
from tessera.erased_events import hide_erased
from tessera.event_serving import Reader
from tessera.pagination_token import encode_page_token
from tessera.storage.room_reads.events import EventRow
from tessera.unread import RoomUnread

_NAME, _AVATAR = ("m.room.name", ""), ("m.room.avatar", "")


def room_fields(wanted: WantedRoom) -> Json:
    """What is told of every room."""
    fields: Json = {"bump_stamp": wanted.room.bump_ms, "membership": wanted.room.membership}
    if wanted.lists:
        fields["lists"] = wanted.lists
    return fields


def preview_room(form: Form, wanted: WantedRoom) -> Json:
    """A room that the user is invited to, or knocks on."""
    stripped = wanted.room.stripped_state
    name = "invite_state" if form is Form.EXPERIMENTAL else "stripped_state"
    fields = {
        "initial": True,
        **room_fields(wanted),
        name: orjson.Fragment(stripped if stripped is not None else b"[]"),
    }
    if wanted.is_dm:
        fields["is_dm"] = True
    return fields


def told_room(form: Form, room: ReadRoom, reader: Reader, erased: Set[UserId]) -> Json:
    """A room that the user is in, or has been in."""
    task = room.task
    fields: Json = {"initial": True} if room.is_fresh else {}
    fields |= room_fields(task.wanted)
    _add_timeline(fields, form, room, reader, erased)
    renderer = EventRenderer(NO_FILTER, reader, room.row.room_version)
    required: list[Any] = list(renderer.state(room.state[key] for key in room.told_keys))
    if form is Form.ACCEPTED:
        wish = task.wanted.required_state
        required += [{"type": key[0], "state_key": key[1]} for key in room.gone if wish.matches(*key)]
    if required:
        fields["required_state"] = required
    _add_name(fields, room)
    if room.is_fresh or (room.row.members_changed and not room.is_cut):
        fields["joined_count"] = room.row.joined_count
        fields["invited_count"] = room.row.invited_count
    _add_dm(fields, room)
    if room.unread is not None:
        fields |= unread_counts(room.unread)
    return fields


def unread_counts(unread: RoomUnread) -> Json:
    """The counts of a room; the form has none for threads."""
    total = unread.total
    return {"notification_count": total.notify, "highlight_count": total.highlight}


def hero(user_id: UserId, member: Json) -> Json:
    """Somebody after whom a room may be called; `member` is the content of the member event."""
    fields: Json = {"user_id": user_id}
    for key in ("displayname", "avatar_url"):
        if isinstance(member.get(key), str):
            fields[key] = member[key]
    return fields


def _add_timeline(fields: Json, form: Form, room: ReadRoom, reader: Reader, erased: Set[UserId]) -> None:
    events, bundles = room.events, room.bundles
    if erased and (room.tells_all or room.task.is_left):
        rules = ROOM_VERSIONS[room.row.room_version]
        events, bundles = hide_erased(room.row.room_id, rules, events, bundles, room.history, erased)
    if events or room.is_fresh or room.limited:
        renderer = EventRenderer(NO_FILTER, reader, room.row.room_version)
        fields["timeline"] = renderer.timeline(events, bundles)
        fields["prev_batch"] = encode_page_token(room.start)
        # Clients of the experimental form put older events in their place only if there may be more.
        is_older = form is Form.EXPERIMENTAL and room.task.is_expanded
        fields["limited"] = room.limited or is_older
        fields["num_live"] = room.num_live
    if room.task.is_expanded and not room.is_fresh:
        fields["expanded_timeline" if form is Form.ACCEPTED else "unstable_expanded_timeline"] = True


def _add_name(fields: Json, room: ReadRoom) -> None:
    for field, key, content_key in (("name", _NAME, "name"), ("avatar", _AVATAR, "url")):
        value = _text_of(room.state.get(key), content_key)
        if value is not None:
            fields[field] = value
        elif not room.is_fresh and (key in room.state or key in room.gone):
            fields[field] = None
    if room.heroes is not None:
        fields["heroes"] = [
            hero(user_id, _content(room.members[user_id])) for user_id in room.heroes if user_id in room.members
        ]


def _add_dm(fields: Json, room: ReadRoom) -> None:
    is_dm = room.task.wanted.is_dm
    was_dm = room.task.sent is not None and room.task.sent.is_dm
    if is_dm if room.is_fresh else is_dm != was_dm:
        fields["is_dm"] = is_dm


def _text_of(event: EventRow | None, key: str) -> str | None:
    value = None if event is None else _content(event).get(key)
    return value if isinstance(value, str) and value else None


def _content(event: EventRow) -> Json:
    content: Json = orjson.loads(event.pdu)["content"]
    return content

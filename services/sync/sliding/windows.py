"""Which rooms a request's lists and subscriptions match, and what is wanted of each.

All in memory: a list is a filter and a slice of the user's rooms in the order of their activity.

Spec: MSC4186 §Lists and subscriptions, §Combining room configs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId
from services.sync.sliding.request import RoomScope, RoomWish, SlidingRequest
from services.sync.sliding.required_state import RequiredState, combined
from services.sync.sliding.room_filters import EVERYTHING, RoomFilter
from services.sync.sliding.room_list import ListedRoom, RoomList, is_listed
from services.sync.sliding.sent_rooms import Sent
from services.sync.user_states import UserState

MAX_EVENTS = 20_000  # in the timelines of all lists together
_LIMIT_STEPS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(slots=True)
class WantedRoom:
    """A room that a request matches.

    Attributes:
        is_dm: as it is told, whatever becomes of the room meanwhile.
        lists: the names of the lists that do.
    """

    room: ListedRoom
    timeline_limit: int
    required_state: RequiredState
    is_dm: bool
    lists: list[str] = field(default_factory=list)
    is_subscribed: bool = False

    def is_in(self, scope: RoomScope) -> bool:
        """Whether an extension with this scope tells of the room."""
        if self.is_subscribed and (scope.rooms is None or self.room.room_id in scope.rooms):
            return True
        return bool(self.lists) and (scope.lists is None or not scope.lists.isdisjoint(self.lists))


@dataclass(slots=True)
class Windows:
    """What a request matches.

    Attributes:
        counts: the length of each list.
        active: the rooms of which there may be anything to tell.
    """

    counts: dict[str, int]
    rooms: dict[RoomId, WantedRoom]
    active: dict[RoomId, WantedRoom]


def match_rooms(
    request: SlidingRequest,
    rooms: RoomList,
    state: UserState,
    sent: Sent,
    children: Mapping[RoomId, Collection[RoomId]],
) -> Windows:
    """The rooms that a request matches now.

    Args:
        children: the rooms in each space that a filter names and the user is in.
    """
    listed = [
        room
        for room in rooms.in_order()
        if room.tail is not None or is_listed(room, rooms, state.ignored, was_sent=room.room_id in sent)
    ]
    counts: dict[str, int] = {}
    wishes: dict[RoomId, list[RoomWish]] = {}
    names: dict[RoomId, list[str]] = {}
    filtered: dict[RoomFilter, Sequence[ListedRoom]] = {EVERYTHING: listed}
    for name, rule in request.lists.items():
        found = filtered.get(rule.filter)
        if found is None:
            inside = frozenset[RoomId]().union(*(children.get(space, ()) for space in rule.filter.spaces or ()))
            found = filtered[rule.filter] = [room for room in listed if rule.filter.allows(room, inside)]
        counts[name] = len(found)
        for room_id in _in_ranges(found, rule.ranges):
            names.setdefault(room_id, []).append(name)
            wishes.setdefault(room_id, []).append(rule.wish)
    for room_id, wish in request.subscriptions.items():
        if (known := rooms.rooms.get(room_id)) is not None and _may_subscribe(known, rooms, state):
            wishes.setdefault(room_id, []).append(wish)
    matched: dict[RoomId, WantedRoom] = {}
    most = _most_events(len(wishes))
    for room_id, several in wishes.items():
        if len(several) == 1:
            limit, required = several[0].timeline_limit, several[0].required_state
        else:
            limit = max(wish.timeline_limit for wish in several)
            required = combined(tuple(wish.required_state for wish in several))
        is_subscribed = room_id in request.subscriptions
        limit = limit if is_subscribed else min(limit, most)
        room = rooms.rooms[room_id]
        matched[room_id] = WantedRoom(room, limit, required, room.is_dm, names.get(room_id, []), is_subscribed)
    return Windows(counts, matched, matched)


def _most_events(rooms: int) -> int:
    """How long timelines may be, so that an answer stays below MAX_EVENTS; of few values, as any rise tells more."""
    return max((step for step in _LIMIT_STEPS if step * rooms <= MAX_EVENTS), default=1)


def _in_ranges(rooms: Sequence[ListedRoom], ranges: Sequence[tuple[int, int]] | None) -> Collection[RoomId]:
    if ranges is None:
        return [room.room_id for room in rooms]
    return {room.room_id for first, last in ranges for room in rooms[first : last + 1]}


def _may_subscribe(room: ListedRoom, rooms: RoomList, state: UserState) -> bool:
    """Whether the user may be told of a room: in it, invited, knocking, or there at some time."""
    if room.was_joined and room.membership in ("leave", "ban"):
        return not room.forgotten
    return is_listed(room, rooms, state.ignored, was_sent=False)


def named_spaces(request: SlidingRequest) -> frozenset[RoomId]:
    """The spaces that filters name."""
    return frozenset[RoomId]().union(*(rule.filter.spaces or () for rule in request.lists.values()))

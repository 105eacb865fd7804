"""Who is typing where, as a process hears of it.

Spec: C-S API §Typing notifications.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId, UserId
from tessera.clock import Clock
from tessera.wakes import TypingChange

MAX_TYPING_ROOMS = 10_000
MAX_TYPISTS = 100  # of a room


@dataclass(slots=True)
class _TypingRoom:
    changed: int
    until: dict[UserId, float] = field(default_factory=dict)


class TypingBoard:
    """Who types where; it counts its own changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rooms: OrderedDict[RoomId, _TypingRoom] = OrderedDict()
        self.count = 0

    def apply(self, change: TypingChange) -> bool:
        """Take a change; whether the list of users is another one now."""
        room = self._rooms.get(change.room_id)
        if room is None:
            if change.timeout_ms <= 0:
                return False
            room = self._rooms[change.room_id] = _TypingRoom(0)
            if len(self._rooms) > MAX_TYPING_ROOMS:
                self._rooms.popitem(last=False)
        was_typing = change.user_id in room.until
        if change.timeout_ms > 0:
            if was_typing or len(room.until) < MAX_TYPISTS:
                room.until[change.user_id] = self._clock.monotonic() + change.timeout_ms / 1000
        else:
            room.until.pop(change.user_id, None)
        if was_typing == (change.user_id in room.until):
            return False
        self._touch(change.room_id, room)
        return True

    def expire(self) -> list[RoomId]:
        """Forget who typed for too long; the rooms whose lists changed."""
        now = self._clock.monotonic()
        changed = []
        for room_id, room in list(self._rooms.items()):
            late = [user_id for user_id, until in room.until.items() if until <= now]
            for user_id in late:
                del room.until[user_id]
            if late:
                self._touch(room_id, room)
                changed.append(room_id)
        return changed

    @property
    def is_quiet(self) -> bool:
        """Whether nobody types, so that nothing can expire."""
        return not any(room.until for room in self._rooms.values())

    def changed_since(self, count: int | None, room_ids: Iterable[RoomId]) -> dict[RoomId, list[UserId]]:
        """The typists of those of the rooms whose list changed after `count`; None: where anybody types."""
        if not self._rooms:
            return {}
        found: dict[RoomId, list[UserId]] = {}
        for room_id in room_ids:
            room = self._rooms.get(room_id)
            if room is not None and (room.until if count is None else room.changed > count):
                found[room_id] = list(room.until)
        return found

    def typists(self, room_id: RoomId) -> list[UserId]:
        """Who types in a room."""
        room = self._rooms.get(room_id)
        return [] if room is None else list(room.until)

    def _touch(self, room_id: RoomId, room: _TypingRoom) -> None:
        self.count += 1
        room.changed = self.count
        self._rooms.move_to_end(room_id)

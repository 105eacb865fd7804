"""Which of a user's rooms a list is made of. Spec: MSC4186 §SlidingRoomFilter."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from matrixcore.identifiers import RoomId


class FilteredRoom(Protocol):
    """What a filter looks at."""

    @property
    def room_id(self) -> RoomId: ...
    @property
    def is_invite(self) -> bool: ...
    @property
    def is_dm(self) -> bool: ...
    @property
    def is_encrypted(self) -> bool: ...
    @property
    def room_type(self) -> str | None: ...
    @property
    def tags(self) -> Collection[str]: ...


@dataclass(frozen=True, slots=True)
class RoomFilter:
    """A list's filters; None does not filter.

    Attributes:
        spaces: only children of these, of which the user is in; `room_types` may hold None for rooms without a type.
    """

    is_dm: bool | None = None
    is_encrypted: bool | None = None
    is_invite: bool | None = None
    spaces: frozenset[RoomId] | None = None
    room_types: frozenset[str | None] | None = None
    not_room_types: frozenset[str | None] = frozenset()
    tags: frozenset[str] | None = None
    not_tags: frozenset[str] = frozenset()

    def allows(self, room: FilteredRoom, children: Collection[RoomId]) -> bool:
        """Whether a room belongs to the list.

        Args:
            children: the rooms in `spaces`.
        """
        if self.is_dm is not None and room.is_dm != self.is_dm:
            return False
        if self.is_invite is not None and room.is_invite != self.is_invite:
            return False
        if self.is_encrypted is not None and room.is_encrypted != self.is_encrypted:
            return False
        if self.room_types is not None and room.room_type not in self.room_types:
            return False
        if self.not_room_types and room.room_type in self.not_room_types:
            return False
        if self.tags is not None and self.tags.isdisjoint(room.tags):
            return False
        if self.not_tags and not self.not_tags.isdisjoint(room.tags):
            return False
        return self.spaces is None or room.room_id in children


EVERYTHING = RoomFilter()

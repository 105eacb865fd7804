"""The rooms that a writer holds in memory: what a linear room needs, never its full state.

A hot room changes only after the commit that it tells of, so that it always is what PostgreSQL has.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from matrixcore.event_hashes import reference_hash
from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, RoomId, StateKey
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersionRules
from matrixcore.signing import encode_base64
from services.rooms.resolutions import Resolutions
from tessera.storage.rooms import LoadedEvent, LoadedRoom, ThreadSums

ROOM_BYTES = 2_000  # about what an empty room takes
EVENT_BYTES = 2_000  # about what an event takes beside its PDU, parsed PDUs taking some four times their length
RECENT_EVENTS = 64  # events of a room whose relations are remembered
THREADS_KEPT = 64
ROOM_LIMIT_BYTES = 4_000_000  # a room that has grown beyond this forgets its members and loads those it needs


def event_bytes(event: Event | None) -> int:
    """About the memory that an event of the state takes."""
    return 200 if event is None else EVENT_BYTES + 4 * len(event.pdu)


@dataclass(slots=True)
class HotRoom:
    """One room as of its last commit.

    Attributes:
        state: (type, state key) -> event of current state; None where the room has none, no entry
            where nobody has looked.
        reference_hashes: of the extremities, in room versions 1 and 2 only.
        state_mark: of current state, as resolutions tell states apart.
        threads: cumulative counters; None for a thread without events.
        recent: the youngest events, for relations.
    """

    room_id: RoomId
    partition: int
    rules: RoomVersionRules
    extremities: tuple[EventId, ...]
    depth: int
    last_position: int
    joined_count: int
    invited_count: int
    notify_count: int
    highlight_all_count: int
    servers: dict[str, int]
    state: dict[StateKey, Event | None] = field(default_factory=dict)
    reference_hashes: dict[EventId, str] = field(default_factory=dict)
    threads: dict[EventId, ThreadSums | None] = field(default_factory=dict)
    recent: dict[EventId, LoadedEvent] = field(default_factory=dict)
    size: int = ROOM_BYTES
    state_mark: int = 0  # counted from whatever the state was when the room was loaded
    resolutions: Resolutions | None = None  # of a room that has forked

    @property
    def forked(self) -> bool:
        return len(self.extremities) > 1

    @property
    def memory(self) -> int:
        """Bytes, about, that the room takes in all."""
        return self.size + (0 if self.resolutions is None else self.resolutions.size)

    def learn(self, key: StateKey, event: Event | None) -> None:
        """Take in what the room has at a key."""
        self.size += event_bytes(event) - (event_bytes(self.state[key]) if key in self.state else 0)
        self.state[key] = event

    def trim(self) -> None:
        """Keep the bounds."""
        while len(self.recent) > RECENT_EVENTS:
            del self.recent[next(iter(self.recent))]
        while len(self.threads) > THREADS_KEPT:
            del self.threads[next(iter(self.threads))]
        if self.resolutions is not None:
            self.resolutions.trim()
        if self.size > ROOM_LIMIT_BYTES:
            kept = {key: event for key, event in self.state.items() if key[0] != "m.room.member"}
            self.state = kept
            self.size = ROOM_BYTES + sum(map(event_bytes, kept.values()))


def hot_room_of(loaded: LoadedRoom) -> HotRoom:
    """A room that has just been loaded; nothing of its state is known yet."""
    rules = ROOM_VERSIONS[loaded.room_version]
    room = HotRoom(
        loaded.room_id,
        loaded.partition,
        rules,
        loaded.forward_extremities,
        loaded.depth,
        loaded.last_position,
        loaded.joined_count,
        loaded.invited_count,
        loaded.notify_count,
        loaded.highlight_all_count,
        loaded.servers,
    )
    room.size += 100 * len(loaded.servers)
    if rules.event_id_format is EventIdFormat.GIVEN:
        for event_id, pdu in loaded.extremity_pdus.items():
            room.reference_hashes[event_id] = hash_of(load_event(pdu, event_id, rules))
    return room


def hash_of(event: Event) -> str:
    """The reference hash as references of room versions 1 and 2 carry it."""
    return encode_base64(reference_hash(event.fields, event.rules))


class HotRooms:
    """The hot rooms of a shard, least recently used first out, bounded in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._rooms: OrderedDict[RoomId, HotRoom] = OrderedDict()
        self._sizes: dict[RoomId, int] = {}  # as accounted for
        self._size = 0

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def size(self) -> int:
        """Bytes, about."""
        return self._size

    def find(self, room_id: RoomId) -> HotRoom | None:
        """A room, which becomes the most recently used."""
        room = self._rooms.get(room_id)
        if room is not None:
            self._rooms.move_to_end(room_id)
        return room

    def put(self, room: HotRoom) -> None:
        """Add a room, or account for its growth."""
        room.trim()
        memory = room.memory
        self._size += memory - self._sizes.get(room.room_id, 0)
        self._sizes[room.room_id] = memory
        self._rooms[room.room_id] = room
        self._rooms.move_to_end(room.room_id)

    def evict(self) -> None:
        """Drop the least recently used rooms beyond the bound; between batches only."""
        while self._size > self._limit and len(self._rooms) > 1:
            room_id, _ = self._rooms.popitem(last=False)
            self._size -= self._sizes.pop(room_id)

    def forget(self, room_ids: Iterable[RoomId]) -> None:
        """Drop rooms, of which memory may be wrong."""
        for room_id in room_ids:
            if self._rooms.pop(room_id, None) is not None:
                self._size -= self._sizes.pop(room_id)

    def forget_partition(self, partition: int) -> None:
        """Drop the rooms of a partition that is somebody else's now."""
        self.forget([room_id for room_id, room in self._rooms.items() if room.partition == partition])

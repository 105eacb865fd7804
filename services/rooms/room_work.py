"""One room inside one batch: what it will be after the commit, and the rows that make it so.

Nothing of the hot room changes here. `RoomWork.adopt` brings the hot room up to date once the
batch is committed; a batch that fails just drops its works.
"""

from dataclasses import dataclass, field
from typing import Any

from matrixcore.auth_events import CREATE
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey, UserId
from matrixcore.room_versions import EventIdFormat, RoomVersionRules
from matrixcore.signing import SigningKey
from services.rooms.hot_rooms import HotRoom, event_bytes, hash_of
from services.rooms.resolutions import mark_of
from tessera.commands import MembershipDelta, Outcome
from tessera.ids import IdSource
from tessera.records import LogRecord, RecordBody, RecordKind, encode_body
from tessera.storage.rooms import Loaded, LoadedEvent, ThreadSums
from tessera.storage.writer_batch import EventRow, RoomRow, WriterBatch, array_literal

MEMBER = "m.room.member"


class Refused(Exception):
    """A command that the room does not allow; the Matrix error that its sender gets."""

    def __init__(self, http_status: int, errcode: str, error: str) -> None:
        super().__init__(error)
        self.http_status = http_status
        self.errcode = errcode
        self.error = error


class StateNotLoaded(Exception):
    """A key of the state was needed that nobody had foreseen: it is loaded and the batch built again."""

    def __init__(self, room_id: RoomId, key: StateKey) -> None:
        super().__init__(f"{key} of {room_id}")
        self.room_id = room_id
        self.key = key


@dataclass(frozen=True, slots=True)
class Signer:
    """Who makes this server's events."""

    server_name: ServerName
    key: SigningKey
    ids: IdSource  # for event IDs of room versions 1 and 2


@dataclass(slots=True)
class PartitionWork:
    """The positions that a batch allots in one partition."""

    partition: int
    epoch: int
    incarnation: int
    head: int
    position: int  # the last that was allotted
    records: list[LogRecord] = field(default_factory=list)


@dataclass(slots=True)
class RoomWork:
    """A room in the making. Attributes are those of `HotRoom` as they will be, and rows by key."""

    hot: HotRoom
    is_new: bool
    partition: PartitionWork
    loaded: Loaded
    now_ms: int
    rules: RoomVersionRules
    extremities: tuple[EventId, ...]
    depth: int
    last_position: int
    joined_count: int
    invited_count: int
    notify_count: int
    highlight_all_count: int
    reference_hashes: dict[EventId, str]
    create_row: tuple[str, str, str, int] | None = None  # version, creator, create event, created_ms
    state_mark: int = 0
    changed: bool = False
    is_here: bool = True  # False for a room of other servers: records about it have no room to change
    state_changes: dict[StateKey, Event | None] = field(default_factory=dict)
    server_changes: dict[str, int] = field(default_factory=dict)
    thread_changes: dict[EventId, ThreadSums] = field(default_factory=dict)
    facts: dict[EventId, LoadedEvent] = field(default_factory=dict)
    receipts: dict[tuple[str, str, str], tuple[EventId, int, int]] = field(default_factory=dict)  # event, ts, position
    events: dict[EventId, EventRow] = field(default_factory=dict)
    current: dict[StateKey, tuple[str, int, str | None] | None] = field(default_factory=dict)
    # What current state had under the keys of `current` before this batch.
    replaced: dict[StateKey, EventId | None] = field(default_factory=dict)
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    # What becomes of inbox rows: None when done, else the events that they wait for and whether outliers suffice.
    inbox: dict[int, dict[EventId, bool] | None] = field(default_factory=dict)
    asked_for: set[int] = field(default_factory=set)  # inbox rows taken in as outliers or as history
    unsigned: set[int] = field(default_factory=set)  # inbox rows for which the room's policy server is to be asked
    arrived: dict[EventId, None] = field(default_factory=dict)  # events that parked PDUs waited for
    verdicts: dict[str, int] = field(default_factory=dict)  # on events of other servers, for the metrics
    # Current state as it was committed, for this batch only: a resolution may change more than a hot room can hold.
    pinned: dict[StateKey, Event | None] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    memberships: list[MembershipDelta] = field(default_factory=list)  # of the command that is being built
    _servers: tuple[ServerName, ...] | None = None

    @property
    def room_id(self) -> RoomId:
        return self.hot.room_id

    @property
    def forked(self) -> bool:
        return len(self.extremities) > 1

    def state(self, key: StateKey) -> Event | None:
        """What the room has at a key of its state.

        Raises:
            StateNotLoaded
        """
        if key in self.state_changes:
            return self.state_changes[key]
        known = self.hot.state
        if key in known:
            return known[key]
        if key in self.pinned:
            return self.pinned[key]
        if self.is_new or not may_be_state_key(key):
            return None
        raise StateNotLoaded(self.room_id, key)

    def create_event(self) -> Event:
        """The create event, which every room has."""
        create = self.state(CREATE)
        assert create is not None
        return create

    def membership(self, user_id: str) -> str | None:
        """A user's current membership; None without a member event."""
        event = self.state((MEMBER, user_id))
        return None if event is None else event.membership

    def find_event(self, event_id: EventId) -> LoadedEvent | None:
        """What is known of an event that another one names."""
        found = self.facts.get(event_id) or self.hot.recent.get(event_id)
        return found or self.loaded.events.get((self.room_id, event_id))

    def thread(self, root: EventId) -> ThreadSums | None:
        """The counters of a thread; None if it has none yet."""
        if root in self.thread_changes:
            return self.thread_changes[root]
        if root in self.hot.threads:
            return self.hot.threads[root]
        return self.loaded.threads.get((self.room_id, root))

    def other_servers(self, own: ServerName) -> tuple[ServerName, ...]:
        """The servers with joined users, this one left out, sorted."""
        if self._servers is None:
            servers = {**self.hot.servers, **self.server_changes}
            self._servers = tuple(
                sorted(ServerName(name) for name, count in servers.items() if count > 0 and name != own)
            )
        return self._servers

    def is_followed(self, own: ServerName) -> bool:
        """Whether this server hears of all events of the room: it has members, or nobody has."""
        if self.is_new or self.server_changes.get(own, self.hot.servers.get(own, 0)) > 0:
            return True
        return not any(count > 0 for count in {**self.hot.servers, **self.server_changes}.values())

    def record(self, kind: RecordKind, body: RecordBody, event_id: EventId | None = None) -> int:
        """Append a record to the partition; its position."""
        part = self.partition
        part.position += 1
        part.records.append(
            LogRecord(part.incarnation, part.partition, part.position, self.room_id, self.last_position, kind, body)
        )
        stored = None if kind is RecordKind.EVENT else encode_body(body)
        self.add_row(
            "records",
            (
                part.partition,
                part.position,
                part.incarnation,
                self.room_id,
                self.last_position,
                int(kind),
                event_id,
                stored,
            ),
        )
        self.last_position = part.position
        self.changed = True
        return part.position

    def add_row(self, section: str, row: tuple[Any, ...]) -> None:
        """A row of a section of the commit."""
        rows = self.rows.get(section)
        if rows is None:
            rows = self.rows[section] = []
        rows.append(row)

    def set_state(self, key: StateKey, event: Event | None, position: int) -> None:
        """Change current state from this position on, and what is counted of it."""
        before = self.state(key)
        before_id = None if before is None else before.event_id
        membership = event.membership if event is not None and key[0] == MEMBER else None
        if key[0] == MEMBER:
            self._count_member(key[1], None if before is None else before.membership, membership)
        self.state_changes[key] = event
        event_id = None if event is None else event.event_id
        self.replaced.setdefault(key, before_id)
        self.state_mark += mark_of(key, event_id) - mark_of(key, before_id)
        self.current[key] = None if event_id is None else (event_id, position, membership)
        self.add_row(
            "history",
            (self.partition.partition, self.room_id, key[0], key[1], position, 0, event_id, membership),
        )

    def _count_member(self, user_id: str, before: str | None, after: str | None) -> None:
        if before == after:
            return
        self.joined_count += (after == "join") - (before == "join")
        self.invited_count += (after == "invite") - (before == "invite")
        if "join" in (before, after):
            server = user_id.partition(":")[2]
            count = self.server_changes.get(server, self.hot.servers.get(server, 0))
            self.server_changes[server] = count + (1 if after == "join" else -1)
            self._servers = None

    def advance(self, event: Event) -> None:
        """Make an event the room's newest: it takes the place of its prev events among the extremities."""
        referenced = set(event.prev_events)
        self.extremities = (*(e for e in self.extremities if e not in referenced), event.event_id)
        self.depth = max(self.depth, event.depth)
        if self.rules.event_id_format is EventIdFormat.GIVEN:
            self.reference_hashes[event.event_id] = hash_of(event)
        self.changed = True

    def write(self, batch: WriterBatch) -> None:
        """Add this room's rows to the commit."""
        part, room_id = self.partition.partition, self.room_id
        for section, rows in self.rows.items():
            batch.add(section, rows)
        if self.events:
            batch.add("events", self.events.values())
        for (event_type, state_key), current in self.current.items():
            if current is None:
                batch.rows["state_gone"].append((part, room_id, event_type, state_key))
            else:
                event_id, position, membership = current
                batch.rows["state"].append((part, room_id, event_type, state_key, event_id, position, 0, membership))
        for server, count in self.server_changes.items():
            if count > 0:
                batch.rows["servers"].append((part, room_id, server, count))
            else:
                batch.rows["servers_gone"].append((part, room_id, server))
        batch.add("threads", ((part, room_id, root, *sums) for root, sums in self.thread_changes.items()))
        batch.add("receipts", ((part, room_id, *key, *receipt) for key, receipt in self.receipts.items()))
        if self.inbox:
            self._write_inbox(batch)
        if self.changed and self.is_here:
            self._write_room(batch)

    def _write_inbox(self, batch: WriterBatch) -> None:
        part, room_id = self.partition.partition, self.room_id
        wanted: set[EventId] = set()
        for inbox_id, missing in self.inbox.items():
            if missing is None:
                batch.rows["inbox_gone"].append((part, inbox_id, inbox_id in self.asked_for))
            else:
                waiting = "inbox_unsigned" if inbox_id in self.unsigned else "inbox_parked"
                batch.rows[waiting].append((part, inbox_id))
            for event_id, as_outlier in (missing or {}).items():
                wanted.add(event_id)
                batch.rows["missing"].append((part, room_id, event_id, inbox_id, as_outlier))
        batch.add("missing_gone", ((part, room_id, event_id) for event_id in self.arrived if event_id not in wanted))

    def _write_room(self, batch: WriterBatch) -> None:
        row = RoomRow(
            self.partition.partition,
            self.room_id,
            array_literal(self.extremities),
            self.depth,
            self.last_position,
            self.joined_count,
            self.invited_count,
            self.notify_count,
            self.highlight_all_count,
            self.forked,
        )
        if self.create_row is not None:
            batch.rows["new_rooms"].append((*row, *self.create_row))
        else:
            batch.rows["rooms"].append(row)

    def adopt(self) -> HotRoom:
        """Bring the hot room to what has been committed."""
        hot = self.hot
        hot.extremities, hot.depth, hot.last_position = self.extremities, self.depth, self.last_position
        hot.joined_count, hot.invited_count = self.joined_count, self.invited_count
        hot.notify_count, hot.highlight_all_count = self.notify_count, self.highlight_all_count
        hot.state_mark = self.state_mark
        if self.reference_hashes:
            hot.reference_hashes = {e: h for e, h in self.reference_hashes.items() if e in self.extremities}
        for key, event in self.state_changes.items():
            hot.size += event_bytes(event) - (event_bytes(hot.state[key]) if key in hot.state else 0)
            hot.state[key] = event
        for server, count in self.server_changes.items():
            if count > 0:
                hot.servers[server] = count
            else:
                hot.servers.pop(server, None)
        hot.threads.update(self.thread_changes)
        hot.recent.update(self.facts)
        return hot


def start_work(
    hot: HotRoom, partition: PartitionWork, loaded: Loaded, now_ms: int, *, is_new: bool = False
) -> RoomWork:
    """Begin a batch's work on a room."""
    return RoomWork(
        hot,
        is_new,
        partition,
        loaded,
        now_ms,
        hot.rules,
        hot.extremities,
        hot.depth,
        hot.last_position,
        hot.joined_count,
        hot.invited_count,
        hot.notify_count,
        hot.highlight_all_count,
        dict(hot.reference_hashes),
        state_mark=hot.state_mark,
    )


def may_be_state_key(key: StateKey) -> bool:
    """Whether a room can have state under a key: no event with NUL in its type or state key is accepted."""
    return "\0" not in key[0] and "\0" not in key[1]


def local_user(user_id: str | None, server_name: ServerName) -> UserId | None:
    """The user if it is one of this server's."""
    if user_id is None or not user_id.startswith("@") or user_id.partition(":")[2] != server_name or "\0" in user_id:
        return None
    return UserId(user_id)

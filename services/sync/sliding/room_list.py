"""The rooms of one user from which lists are made: loaded once, then kept up by the user's log.

Spec: MSC4186 §Lists, §Activity ordering.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from services.sync.room_plan import INVITE, JOIN, KNOCK
from services.sync.room_tails import RoomTail
from services.sync.sliding.room_facts import facts_of, load_facts, room_type_of
from services.sync.snapshot import blocks_invites
from services.sync.user_states import UserState
from tessera.clock import Clock
from tessera.storage import sliding_accounts, sliding_rooms, user_rooms
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.storage.sliding_accounts import ListData
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.storage.user_rooms import UserRoom

_DATA_TYPES = frozenset(("m.direct", "m.invite_permission_config"))


@dataclass(slots=True, eq=False)
class ListedRoom:
    """One room of a user.

    Attributes:
        position: of the user's own membership in the room's partition.
        was_joined: whether the user has ever been in the room.
        tail: of a room that the user is in.
        since_ms: when the membership began, for rooms that the user is not in.
    """

    room_id: RoomId
    membership: str
    sender: UserId
    event_id: EventId
    position: int
    log_position: int
    forgotten: bool
    was_joined: bool
    stripped_state: bytes | None = None
    tail: RoomTail | None = None
    since_ms: int = 0
    known_type: str | None = None
    known_encrypted: bool = False
    is_dm: bool = False
    tags: frozenset[str] = frozenset()

    @property
    def is_joined(self) -> bool:
        """Whether the user is in it."""
        return self.membership == JOIN

    @property
    def is_invite(self) -> bool:
        """Whether the user is invited and not in it."""
        return self.membership == INVITE

    @property
    def is_encrypted(self) -> bool:
        """Whether it has an m.room.encryption event, as far as the user may know."""
        return facts_of(self.tail).is_encrypted if self.tail is not None else self.known_encrypted

    @property
    def room_type(self) -> str | None:
        """`type` of its m.room.create event."""
        return facts_of(self.tail).room_type if self.tail is not None else self.known_type

    @property
    def bump_ms(self) -> int:
        """bump_stamp."""
        return facts_of(self.tail).bump_ms if self.tail is not None else self.since_ms


@dataclass(slots=True)
class RoomList:
    """All rooms of a user, at `log_head` of the user's log; -1 before anything was loaded."""

    user_id: UserId
    log_head: int = -1
    rooms: dict[RoomId, ListedRoom] = field(default_factory=dict)
    hides_invites: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _order: list[ListedRoom] = field(default_factory=list)

    def in_order(self) -> Sequence[ListedRoom]:
        """All rooms, the one with the newest activity first; nearly sorted from the last time."""
        if len(self._order) != len(self.rooms):
            self._order = list(self.rooms.values())
        self._order.sort(key=_activity, reverse=True)
        return self._order

    def put(self, room: ListedRoom) -> None:
        """Add a room, or replace it."""
        if room.room_id in self.rooms:
            self._order = []
        self.rooms[room.room_id] = room

    def replace_all(self, rooms: dict[RoomId, ListedRoom]) -> None:
        """Have these rooms and no others."""
        self.rooms = rooms
        self._order = []

    def take_data(self, data: ListData) -> None:
        """Account data, for all rooms."""
        direct = direct_rooms(data.direct)
        self.hides_invites = blocks_invites(data.invite_permission)
        for room in self.rooms.values():
            room.is_dm = room.room_id in direct
            room.tags = tags_of(data.tags.get(room.room_id))


class RoomLists:
    """Loads the lists of users, and brings them up to the users' states."""

    def __init__(self, accounts: Database, shards: RoomShards, clock: Clock) -> None:
        self._accounts = accounts
        self._shards = shards
        self._clock = clock

    async def up_to_date(self, state: UserState) -> RoomList:
        """The list of a user, at the log's position up to which the state is, with the facts of all its rooms.

        Raises:
            DatabaseUnavailable
        """
        rooms = state.room_list
        if rooms is None:
            rooms = state.room_list = RoomList(state.user_id)
        if rooms.log_head != state.log_head:
            async with rooms.lock:
                await self._follow(state, rooms)
        missing = [tail for tail in state.joined.values() if tail.facts is None or not tail.facts.is_loaded]
        if missing:
            await load_facts(self._shards, missing)
        return rooms

    async def _follow(self, state: UserState, rooms: RoomList) -> None:
        if rooms.log_head == state.log_head:
            return
        entries = None if rooms.log_head < 0 else state.entries_after(rooms.log_head)
        log_head = state.log_head
        if entries is None:
            await self._load(state, rooms, log_head)
            return
        if any(_changes_data(entry) for entry in entries):
            async with self._accounts.reading() as tx:
                data = await sliding_accounts.find_list_data(tx, state.user_id)
        else:
            data = None
        for entry in entries:
            self._apply(state, rooms, entry)
        rooms.log_head = log_head
        if data is not None:
            rooms.take_data(data)

    def _apply(self, state: UserState, rooms: RoomList, entry: UserLogRow) -> None:
        room_id = RoomId(entry.room_id)
        known = rooms.rooms.get(room_id)
        if entry.kind == UserLogKind.FORGET and known is not None:
            known.forgotten = True
        elif entry.kind == UserLogKind.MEMBERSHIP and entry.body is not None:
            body = orjson.loads(entry.body)
            stripped = body.get("state")
            was_joined = JOIN in (body["membership"], body["prev_membership"])
            room = ListedRoom(
                room_id,
                body["membership"],
                UserId(body["sender"]),
                EventId(body["event_id"]),
                body["position"],
                entry.position,
                forgotten=known is not None and known.forgotten and body["membership"] in ("leave", "ban"),
                was_joined=was_joined or (known is not None and known.was_joined),
                stripped_state=None if stripped is None else orjson.dumps(stripped),
                tail=state.joined.get(room_id) if body["membership"] == JOIN else None,
                since_ms=self._clock.now_ms(),
            )
            if known is not None:
                room.is_dm, room.tags = known.is_dm, known.tags
                room.known_encrypted, room.known_type = known.is_encrypted, known.room_type
            if stripped is not None:
                room.known_encrypted, room.known_type = previewed(stripped)
            rooms.put(room)

    async def _load(self, state: UserState, rooms: RoomList, log_head: int) -> None:
        """Read everything. It may be newer than `log_head`; what the log says from there on is then applied twice."""
        async with self._accounts.snapshot() as tx:
            rows = await user_rooms.list_rooms(tx, state.user_id)
            data = await sliding_accounts.find_list_data(tx, state.user_id)
        found = {row.room_id: _listed(state, row) for row in rows}
        await self._read_departed(state.user_id, found.values())
        rooms.replace_all(found)
        rooms.take_data(data)
        rooms.log_head = log_head

    async def _read_departed(self, user_id: UserId, rooms: Iterable[ListedRoom]) -> None:
        away = {room.room_id: room for room in rooms if not room.is_joined and not room.forgotten}
        now_ms = self._clock.now_ms()

        async def read(shard: str, group: list[RoomId]) -> None:
            events = {room_id: away[room_id].event_id for room_id in group}
            async with self._shards.databases[shard].reading() as tx:
                rows = await sliding_rooms.list_departed(tx, user_id, events)
            for row in rows:
                room = away[row.room_id]
                is_open = room.membership in (INVITE, KNOCK)  # what nobody knows the age of had better be seen
                room.since_ms = row.received_ms or (now_ms if is_open else 0)
                room.was_joined = row.was_joined
                if room.stripped_state is None:
                    room.known_encrypted, room.known_type = row.is_encrypted, room_type_of(row.create_pdu)

        await asyncio.gather(*(read(shard, group) for shard, group in self._shards.group_rooms(away).items()))


def is_listed(room: ListedRoom, rooms: RoomList, ignored: frozenset[UserId], *, was_sent: bool) -> bool:
    """Whether a room is among those from which lists are made, for a connection. Spec: MSC4186 §Lists.

    Args:
        was_sent: whether the connection has been told of it.
    """
    if room.membership == JOIN:
        return room.tail is not None
    if room.membership == INVITE:
        return room.sender not in ignored and not rooms.hides_invites
    if room.membership == KNOCK:
        return True
    return not room.forgotten and (was_sent or (room.was_joined and room.sender != rooms.user_id))


def direct_rooms(content: bytes | None) -> frozenset[RoomId]:
    """The rooms of an m.direct; what is malformed is none. Spec: C-S API §Direct Messaging."""
    value = None if content is None else orjson.loads(content)
    if not isinstance(value, dict):
        return frozenset()
    lists = [rooms for rooms in value.values() if isinstance(rooms, list)]
    return frozenset(RoomId(room_id) for rooms in lists for room_id in rooms if isinstance(room_id, str))


def tags_of(content: bytes | None) -> frozenset[str]:
    """The names in an m.tag. Spec: C-S API §Room tagging."""
    if content is None:
        return frozenset()
    tags = orjson.loads(content).get("tags")
    return frozenset(tags) if isinstance(tags, dict) else frozenset()


def previewed(stripped: Sequence[Any]) -> tuple[bool, str | None]:
    """(is encrypted, room type) as stripped state says."""
    is_encrypted, room_type = False, None
    for event in stripped:
        if not isinstance(event, dict) or event.get("state_key") != "":
            continue
        if event.get("type") == "m.room.encryption":
            is_encrypted = True
        elif event.get("type") == "m.room.create" and isinstance(event.get("content"), dict):
            value = event["content"].get("type")
            room_type = value if isinstance(value, str) else None
    return is_encrypted, room_type


def _listed(state: UserState, row: UserRoom) -> ListedRoom:
    room = ListedRoom(
        row.room_id,
        row.membership,
        row.sender,
        row.event_id,
        row.position,
        row.log_position,
        row.forgotten,
        was_joined=row.membership == JOIN,
        stripped_state=row.stripped_state,
        tail=state.joined.get(row.room_id) if row.membership == JOIN else None,
    )
    if row.stripped_state is not None:
        room.known_encrypted, room.known_type = previewed(orjson.loads(row.stripped_state))
    return room


def _activity(room: ListedRoom) -> int:
    """What lists are ordered by; asked of every room for every answer."""
    tail = room.tail
    if tail is None:
        return room.since_ms
    return 0 if tail.facts is None else tail.facts.activity_ms


def _changes_data(entry: UserLogRow) -> bool:
    if entry.kind == UserLogKind.ROOM_ACCOUNT_DATA:
        return entry.key == "m.tag"
    return entry.kind == UserLogKind.ACCOUNT_DATA and entry.key in _DATA_TYPES

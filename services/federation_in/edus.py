"""EDUs of other servers that are not stored: typing, receipts, presence.

They count only for users of the server that sends them, in rooms where those are joined and whose ACL lets the server
take part. Too many of a server's are dropped: the next ones say more than those.

Spec: S-S API §EDUs, §Typing Notifications, §Receipts, §Presence.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from matrixcore.identifiers import EventId, InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from tessera.clock import Clock
from tessera.commands import Command, SetReceipts
from tessera.fanout import Fanout
from tessera.federation.acl import is_server_allowed
from tessera.ids import IdSource
from tessera.records import Receipt
from tessera.room_commands import CommandUnanswered, RoomCommands
from tessera.storage import peer_rooms, presence, remote_devices
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.presence import Presence
from tessera.storage.room_reads.members import list_joined_pairs
from tessera.storage.shards import RoomShards
from tessera.wakes import PresenceChange, TypingChange

log = structlog.get_logger(__name__)

TYPING_MS = 60_000  # a server repeats it sooner, or means no more
MAX_ROOMS = 200  # of one transaction
MAX_PRESENCES = 200
MAX_RECEIPTS = 1_000
MAX_WAITING_RECEIPTS = 20_000
GATHER_SECONDS = 0.2
COMMAND_SECONDS = 20.0
RECEIPTS_AT_ONCE = 200  # of one command
PARALLEL_COMMANDS = 4  # of a partition: one whose writer is away holds up no other's
MAX_EVENT_ID = 255
MAX_STATUS = 1_000
MAX_TS = (1 << 53) - 1
STATES = frozenset(("online", "offline", "unavailable"))
PUBLIC = "m.read"

Edu = Mapping[str, Any]


@dataclass(slots=True)
class _Sorted:
    """What a transaction's EDUs say, as far as they may."""

    typing: dict[tuple[RoomId, UserId], bool] = field(default_factory=dict)
    receipts: dict[tuple[RoomId, UserId, str], Receipt] = field(default_factory=dict)
    presence: dict[UserId, Mapping[str, Any]] = field(default_factory=dict)


class PassingEdus:
    """Takes in what is worth something only now."""

    def __init__(
        self,
        *,
        accounts: Database,
        shards: RoomShards,
        fanout: Fanout,
        commands: RoomCommands,
        clock: Clock,
        ids: IdSource,
        server_name: ServerName,
        presence_enabled: bool,
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._fanout = fanout
        self._commands = commands
        self._clock = clock
        self._ids = ids
        self._server_name = server_name
        self._presence_enabled = presence_enabled
        self._receipts: dict[RoomId, dict[tuple[UserId, str], Receipt]] = {}
        self._busy: set[RoomId] = set()
        self._places: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PARALLEL_COMMANDS))
        self._waiting = 0
        self._has_receipts = asyncio.Event()

    async def receive(self, origin: ServerName, edus: Sequence[Edu]) -> None:
        """The EDUs of one transaction; a store that is away costs them."""
        said = _Sorted()
        for edu in edus:
            _sort(origin, edu, said)
        try:
            await self._take_rooms(origin, said)
            if said.presence and self._presence_enabled:
                await self._take_presence(said.presence)
        except DatabaseUnavailable as error:
            log.info("EDUs dropped", origin=origin, error=str(error))

    async def run(self) -> None:
        """Bring receipts to the rooms, for ever: those of a room that come together are one command."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._has_receipts.wait()
                await self._clock.sleep(GATHER_SECONDS)
                self._has_receipts.clear()
                for room_id in [room_id for room_id in self._receipts if room_id not in self._busy]:
                    self._busy.add(room_id)
                    tasks.create_task(self._bring(room_id))

    async def _bring(self, room_id: RoomId) -> None:
        """Bring what waits to its room; those that cannot be brought are dropped."""
        try:
            async with self._places[self._shards.partition_of(room_id)]:
                receipts = list(self._receipts.pop(room_id).values())
                self._waiting -= len(receipts)
                for start in range(0, len(receipts), RECEIPTS_AT_ONCE):
                    await self._submit(room_id, receipts[start : start + RECEIPTS_AT_ONCE])
        finally:
            self._busy.discard(room_id)
            if room_id in self._receipts:
                self._has_receipts.set()

    async def _submit(self, room_id: RoomId, receipts: Sequence[Receipt]) -> None:
        command = Command(
            id=self._ids.random_bytes(32),
            room_id=room_id,
            partition=self._shards.partition_of(room_id),
            sender=receipts[0].user_id,
            origin_server_ts=self._clock.now_ms(),
            body=SetReceipts(tuple(receipts)),
        )
        try:
            await self._commands.submit(command, timeout_seconds=COMMAND_SECONDS)
        except CommandUnanswered:
            log.info("receipts of another server dropped", room_id=room_id, receipts=len(receipts))

    async def _take_rooms(self, origin: ServerName, said: _Sorted) -> None:
        pairs = list(dict.fromkeys([*said.typing, *((room_id, user_id) for room_id, user_id, _ in said.receipts)]))
        rooms = list(dict.fromkeys(room_id for room_id, _ in pairs))[:MAX_ROOMS]
        joined: set[tuple[RoomId, UserId]] = set()
        for shard, names in self._shards.group_rooms(rooms).items():
            async with self._shards.databases[shard].reading() as tx:
                known = await peer_rooms.list_peer_rooms(tx, names, self._server_name, origin)
                open_rooms = {
                    room_id for room_id, room in known.items() if room.is_joined and is_server_allowed(room.acl, origin)
                }
                joined |= await list_joined_pairs(tx, [pair for pair in pairs if pair[0] in open_rooms])
        for key, is_typing in said.typing.items():
            if key in joined:
                await self._fanout.publish_typing(TypingChange(*key, TYPING_MS if is_typing else 0))
        for (room_id, user_id, thread_id), receipt in said.receipts.items():
            if (room_id, user_id) in joined and self._waiting < MAX_WAITING_RECEIPTS:
                waiting = self._receipts.setdefault(room_id, {})
                self._waiting += (user_id, thread_id) not in waiting
                waiting[user_id, thread_id] = receipt
                self._has_receipts.set()

    async def _take_presence(self, said: Mapping[UserId, Mapping[str, Any]]) -> None:
        sharing: set[UserId] = set()
        for database in self._shards.databases.values():
            async with database.reading() as tx:
                sharing |= await remote_devices.list_sharing(tx, list(said), self._server_name)
        now_ms = self._clock.now_ms()
        states: list[tuple[Presence, bool]] = []
        for user_id in sorted(sharing):
            push = said[user_id]
            ago, status = push.get("last_active_ago"), push.get("status_msg")
            ago = ago if type(ago) is int and 0 <= ago <= now_ms else 0
            status = status[:MAX_STATUS].replace("\0", "") if isinstance(status, str) else None
            state = Presence(user_id, push["presence"], status, now_ms - ago)
            states.append((state, push.get("currently_active") is True))
        if not states:
            return
        async with self._accounts.transaction() as tx:
            await presence.set_told(tx, [state for state, _ in states])
        for state, is_active in states:
            await self._fanout.publish_presence(PresenceChange(*state, currently_active=is_active))


def _sort(origin: ServerName, edu: Edu, said: _Sorted) -> None:
    content = edu["content"]
    match edu["edu_type"]:
        case "m.typing":
            room_id, user_id = _text(content.get("room_id")), _user_of(origin, content.get("user_id"))
            if room_id and user_id is not None:
                said.typing[RoomId(room_id), user_id] = content.get("typing") is True
        case "m.receipt":
            for room_id, receipt in _receipts_in(origin, content):
                if len(said.receipts) < MAX_RECEIPTS:
                    said.receipts[room_id, receipt.user_id, receipt.thread_id] = receipt
        case "m.presence":
            for push in _list(content.get("push")):
                if not isinstance(push, Mapping) or push.get("presence") not in STATES:
                    continue
                user_id = _user_of(origin, push.get("user_id"))
                if user_id is not None and len(said.presence) < MAX_PRESENCES:
                    said.presence[user_id] = push


def _receipts_in(origin: ServerName, content: Mapping[str, Any]) -> Iterator[tuple[RoomId, Receipt]]:
    for room_id, by_type in content.items():
        users = by_type.get(PUBLIC) if isinstance(by_type, Mapping) else None
        if not isinstance(users, Mapping) or not _text(room_id):
            continue
        for name, receipt in users.items():
            user_id = _user_of(origin, name)
            if user_id is None or not isinstance(receipt, Mapping):
                continue
            data, event_ids = receipt.get("data"), _list(receipt.get("event_ids"))
            data = data if isinstance(data, Mapping) else {}
            event_id, thread_id = _text(event_ids[0] if event_ids else None), data.get("thread_id", "")
            ts = data.get("ts")
            if not event_id or not isinstance(thread_id, str) or (thread_id and not _text(thread_id)):
                continue
            at = ts if type(ts) is int and 0 <= ts <= MAX_TS else 0
            yield RoomId(room_id), Receipt(user_id, PUBLIC, thread_id, EventId(event_id), at)


def _user_of(origin: ServerName, value: object) -> UserId | None:
    """A user of the server that speaks."""
    try:
        user_id = parse_user_id(value)
    except InvalidIdentifier:
        return None
    return user_id if server_of(user_id) == origin else None


def _text(value: object) -> str:
    """An identifier that can be stored; '' for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_EVENT_ID and "\0" not in value else ""


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()

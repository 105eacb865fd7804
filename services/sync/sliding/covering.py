"""What an answer covers: fixed before anything of it is read.

The user's log comes first and the heads of the partitions after it, so that every room that the log knows has its
records below the heads.

Spec: MSC4186; DESIGN.md section 5.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import RoomId
from services.sync.sliding.connections import UnknownPos
from services.sync.sliding.room_facts import facts_of, load_children
from services.sync.sliding.room_list import RoomList, RoomLists
from services.sync.sliding.sent_rooms import Told
from services.sync.snapshot import MAX_LOG_ENTRIES
from services.sync.sync_instance import SyncInstance
from services.sync.user_states import UserState
from tessera.http.errors import Unavailable
from tessera.storage import user_log
from tessera.storage.user_log import UserLogRow
from tessera.sync_token import Point, SyncToken

MAX_ROUNDS = 10  # in which a user's log may run ahead of what is read of it


@dataclass(slots=True)
class Covered:
    """What an answer covers.

    Attributes:
        rooms: the user's, at `rooms.log_head` of the user's log.
        positions: up to where rooms are told, by partition.
        entries: of the user's log, after what the client was told.
        children: the rooms in each space that a filter names.
    """

    rooms: RoomList
    positions: dict[int, Point]
    entries: Sequence[UserLogRow]
    children: Mapping[RoomId, frozenset[RoomId]]
    devices: int
    typing: int

    def token(self, instance: int) -> SyncToken:
        """The sync token that says the same."""
        return SyncToken(self.positions, self.rooms.log_head, 0, self.devices, instance, self.typing, 0)


class Covering:
    """Brings users' states up to date for their answers."""

    def __init__(self, instance: SyncInstance) -> None:
        self._instance = instance
        self._accounts = instance.snapshots.accounts
        self._shards = instance.snapshots.shards
        self._lists = RoomLists(self._accounts, self._shards, instance.snapshots.clock)

    async def cover(self, state: UserState, told: Told, spaces: Collection[RoomId]) -> Covered:
        """Bring the user's state up to date, and fix what the answer covers; nothing is waited for after that.

        Args:
            spaces: rooms whose children matter.

        Raises:
            UnknownPos: it was told what is not so any longer, or more than this server has now.
            DatabaseUnavailable
        """
        instance, since = self._instance, told.token
        if since is None or instance.is_in_doubt:
            await self._look(state)
        if since is not None:
            state.heard_head = max(state.heard_head, since.user)
            await self._reach(since)
        for _ in range(MAX_ROUNDS):
            if state.heard_head > state.log_head:
                await instance.users.catch_up(state)
            rooms = await self._lists.up_to_date(state)
            children = await self._children(state, spaces)
            head = rooms.log_head
            entries = () if since is None else await self._entries(state, since.user, head)
            if head == rooms.log_head == state.log_head >= state.heard_head:
                return self._covered(state, since, rooms, entries, children)
        raise Unavailable

    def is_quiet(self, state: UserState, since: SyncToken) -> bool:
        """Whether nothing at all has happened since a token. False says nothing."""
        instance = self._instance
        if (
            instance.is_in_doubt
            or since.instance != instance.snapshots.instance
            or not since.user == state.log_head >= state.heard_head
            or since.devices < instance.users.devices_head
            or since.typing != instance.typing.count
        ):
            return False
        positions, heads = since.positions, instance.feed.heads
        return all(positions.get(partition) == heads[partition] for partition in state.partitions)

    def _covered(
        self,
        state: UserState,
        since: SyncToken | None,
        rooms: RoomList,
        entries: Sequence[UserLogRow],
        children: Mapping[RoomId, frozenset[RoomId]],
    ) -> Covered:
        if since is not None and since.user > rooms.log_head:
            raise UnknownPos
        instance, base = self._instance, {} if since is None else since.positions
        heads, positions = instance.feed.heads, dict(base)
        for partition in state.partitions:
            positions[partition] = max(heads[partition], base.get(partition, heads[partition]))
        return Covered(rooms, positions, entries, children, instance.users.devices_head, instance.typing.count)

    async def _children(self, state: UserState, spaces: Collection[RoomId]) -> dict[RoomId, frozenset[RoomId]]:
        """The rooms in each of the spaces that the user is in."""
        tails = [tail for space in spaces if (tail := state.joined.get(space)) is not None]
        if tails:
            await load_children(self._shards, tails)
        return {tail.room_id: facts_of(tail).children or frozenset() for tail in tails}

    async def _look(self, state: UserState) -> None:
        """Read the heads in PostgreSQL: what hints said, or did not say, is not enough."""
        async with self._accounts.reading() as tx:
            head = await user_log.find_head(tx, state.user_id)
        state.heard_head = max(state.heard_head, head)
        await self._instance.users.catch_up(state)
        await self._instance.feed.repair(state.partitions)

    async def _reach(self, since: SyncToken) -> None:
        """Have this process be where the client's last one was.

        Raises:
            UnknownPos: PostgreSQL went back in time.
        """
        feed = self._instance.feed
        behind = [one for one, point in since.positions.items() if feed.heads.get(one, point) < point]
        if behind:
            await feed.repair(behind)
        for partition, point in since.positions.items():
            head = feed.heads.get(partition, point)
            if head.incarnation != point.incarnation or head < point:
                raise UnknownPos

    async def _entries(self, state: UserState, after: int, up_to: int) -> Sequence[UserLogRow]:
        entries = state.entries_after(after)
        if entries is not None:
            return [entry for entry in entries if entry.position <= up_to]
        async with self._accounts.reading() as tx:
            found = await user_log.list_after(tx, state.user_id, after, up_to, MAX_LOG_ENTRIES + 1)
        if len(found) > MAX_LOG_ENTRIES:
            raise UnknownPos("The connection has been away for too long")
        return found

"""Which application services have to do with rooms now, and with users' rooms: for what passes.

Spec: Application Service API §Pushing ephemeral data.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

from matrixcore.identifiers import RoomId, ServerName, UserId
from services.appservice.interest import NOBODY, Namespaces, Services, load_aliased
from tessera.clock import Clock
from tessera.storage import appservice_reads
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

MAX_ROOMS = 10_000
AT_ONCE = 100  # rooms whose members are read together


class PresentRooms:
    """Looks up in the stores, one query a shard, and remembers for a while."""

    def __init__(
        self, accounts: Database, shards: RoomShards, namespaces: Namespaces, clock: Clock, server_name: ServerName
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._namespaces = namespaces
        self._clock = clock
        self._server_name = server_name
        self._known: OrderedDict[RoomId, tuple[float, Services]] = OrderedDict()

    async def find(self, room_ids: Iterable[RoomId], max_age: float) -> dict[RoomId, Services]:
        """The services of rooms.

        Args:
            max_age: seconds for which an answer is remembered.

        Raises:
            DatabaseUnavailable
        """
        oldest = self._clock.monotonic() - max_age
        wanted = list(dict.fromkeys(room_ids))
        found = {r: known[1] for r in wanted if (known := self._known.get(r)) is not None and known[0] >= oldest}
        missing = [room_id for room_id in wanted if room_id not in found]
        for start in range(0, len(missing), AT_ONCE):
            found |= await self._load(missing[start : start + AT_ONCE])
        while len(self._known) > MAX_ROOMS:
            self._known.popitem(last=False)
        return found

    async def find_of_users(self, user_ids: Sequence[UserId], max_age: float) -> dict[UserId, Services]:
        """The services that share a room with each user, or have the user themselves. Raises DatabaseUnavailable."""
        rooms: dict[UserId, list[RoomId]] = {user_id: [] for user_id in user_ids}
        for database in self._shards.databases.values():
            async with database.reading() as tx:
                listed = await appservice_reads.list_rooms_of_users(tx, user_ids)
            for user_id, theirs in listed.items():
                rooms[user_id] += theirs
        services = await self.find((room_id for theirs in rooms.values() for room_id in theirs), max_age)
        return {
            user_id: self._namespaces.of_user(user_id).union(*(services[room_id] for room_id in theirs))
            for user_id, theirs in rooms.items()
        }

    async def _load(self, room_ids: Collection[RoomId]) -> dict[RoomId, Services]:
        aliased = await load_aliased(self._accounts, self._namespaces, room_ids)
        found = {r: self._namespaces.of_room(r) | aliased.get(r, NOBODY) for r in room_ids}
        for shard, rooms in self._shards.group_rooms(room_ids).items():
            async with self._shards.databases[shard].reading() as tx:
                members = await appservice_reads.list_local_members(tx, rooms, self._server_name)
            for room_id, users in members.items():
                found[room_id] = found[room_id].union(*map(self._namespaces.of_user, users))
        now = self._clock.monotonic()
        for room_id, services in found.items():
            self._known[room_id] = (now, services)
            self._known.move_to_end(room_id)
        return found

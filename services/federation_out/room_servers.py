"""Which other servers are in which rooms, as the shards have it, remembered for a few seconds."""

from collections import OrderedDict
from collections.abc import Sequence

from matrixcore.identifiers import RoomId, ServerName, UserId
from tessera.clock import Clock
from tessera.storage import federation_rooms
from tessera.storage.shards import RoomShards

MAX_ROOMS = 5_000
KEPT_SECONDS = 5.0


class RoomServers:
    """Looks the servers of rooms up, one query a shard."""

    def __init__(self, shards: RoomShards, server_name: ServerName, clock: Clock) -> None:
        self._shards = shards
        self._server_name = server_name
        self._clock = clock
        self._known: OrderedDict[RoomId, tuple[float, list[ServerName]]] = OrderedDict()

    async def find(self, room_ids: Sequence[RoomId]) -> dict[RoomId, list[ServerName]]:
        """The other servers with joined users.

        Raises:
            DatabaseUnavailable
        """
        fresh_after = self._clock.monotonic() - KEPT_SECONDS
        missing = [r for r in room_ids if (known := self._known.get(r)) is None or known[0] < fresh_after]
        for shard, rooms in self._shards.group_rooms(missing).items():
            async with self._shards.databases[shard].reading() as tx:
                found = await federation_rooms.list_servers(tx, rooms, self._server_name)
            now = self._clock.monotonic()
            for room_id in rooms:
                self._known[room_id] = (now, found.get(room_id, []))
                self._known.move_to_end(room_id)
        answer = {room_id: self._known[room_id][1] for room_id in room_ids}
        while len(self._known) > MAX_ROOMS:
            self._known.popitem(last=False)
        return answer

    async def find_of_users(self, user_ids: Sequence[UserId]) -> dict[UserId, set[ServerName]]:
        """The other servers that share a room with each of the users. Raises DatabaseUnavailable."""
        servers: dict[UserId, set[ServerName]] = {user_id: set() for user_id in user_ids}
        for database in self._shards.databases.values():
            async with database.reading() as tx:
                found = await federation_rooms.list_servers_of_users(tx, user_ids, self._server_name)
            for user_id, theirs in found.items():
                servers[user_id] |= theirs
        return servers

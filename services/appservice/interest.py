"""Which application services an event of a room concerns.

A room's members are known exactly as they were before each record: they are read from the room's history once, and
moved on record by record from then on. Each record names the room's record before it, so that a hole shows; then they
are read again.

Spec: Application Service API §Registration.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId, ServerName, UserId
from tessera.appservices import Registration
from tessera.bounded_cache import BoundedCache
from tessera.memberships import memberships_of
from tessera.records import LogRecord
from tessera.storage import appservice_reads
from tessera.storage.database import Database

MAX_ROOMS = 10_000
MAX_MEMBERS = 200_000  # in all rooms together, unless one room alone has more
MAX_USERS = 20_000

Services = frozenset[str]  # IDs of services
NOBODY: Services = frozenset()


class Namespaces:
    """Whose a user or a room is, by its name; remembered for those that were asked about last."""

    def __init__(self, services: Sequence[Registration], server_name: ServerName) -> None:
        self.services = tuple(services)
        self.ids = tuple(one.service_id for one in services)
        self.with_aliases = tuple(one for one in services if one.aliases)
        self._suffix = f":{server_name}"
        self._users: BoundedCache[str, Services] = BoundedCache(MAX_USERS)
        self._rooms: BoundedCache[str, Services] = BoundedCache(MAX_ROOMS)

    def of_user(self, user_id: str | None) -> Services:
        """Those in whose namespaces a user of this server is; users of others are in none."""
        if user_id is None or not user_id.endswith(self._suffix):
            return NOBODY
        return self._remembered(self._users, user_id, lambda one: one.has_user(UserId(user_id)))

    def of_room(self, room_id: RoomId) -> Services:
        """Those in whose namespaces the room's ID is."""
        return self._remembered(self._rooms, room_id, lambda one: one.has_room(room_id))

    def of_aliases(self, aliases: Iterable[str]) -> Services:
        """Those in whose namespaces any of the aliases is."""
        names = tuple(aliases)
        return frozenset(one.service_id for one in self.with_aliases if any(one.has_alias(name) for name in names))

    def _remembered(
        self, known: BoundedCache[str, Services], name: str, is_its: Callable[[Registration], bool]
    ) -> Services:
        found = known.get(name)
        if found is None:
            found = known[name] = frozenset(one.service_id for one in self.services if is_its(one)) or NOBODY
        return found


@dataclass(slots=True)
class _Room:
    """What is known of a room after its record at `position`: the members of each service."""

    position: int
    members: dict[str, set[UserId]] = field(default_factory=dict)

    def count(self) -> int:
        return sum(map(len, self.members.values()))


class RoomMembers:
    """The services' users in the rooms whose records are taken here."""

    def __init__(self, namespaces: Namespaces, server_name: ServerName) -> None:
        self._namespaces = namespaces
        self._server_name = server_name
        self._rooms: OrderedDict[RoomId, _Room] = OrderedDict()
        self._count = 0

    def knows(self, record: LogRecord) -> bool:
        """Whether the room of a record is known as it was right before."""
        room = self._rooms.get(record.room_id)
        return room is not None and room.position == record.room_previous

    async def load(self, database: Database, records: Sequence[LogRecord]) -> None:
        """Get to know the rooms of some records of one shard, as they were before the first of each.

        Raises:
            DatabaseUnavailable
        """
        firsts: dict[RoomId, int] = {}
        for record in records:
            firsts.setdefault(record.room_id, record.room_previous)
        unknown = [
            (room_id, position)
            for room_id, position in firsts.items()
            if (room := self._rooms.get(room_id)) is None or room.position != position
        ]
        found: dict[RoomId, list[UserId]] = {}
        if begun := [place for place in unknown if place[1]]:
            async with database.reading() as tx:
                found = await appservice_reads.list_local_members_at(tx, begun, self._server_name)
        # Only now, and all at once: a room whose members could not be read would pass for an empty one.
        for room_id, position in unknown:
            self._forget(room_id)
            room = self._rooms[room_id] = _Room(position)
            for user_id in found.get(room_id, ()):
                self._set(room, user_id, is_member=True)

    def take(self, record: LogRecord) -> Services:
        """The services with members before or after a record that comes next in its room."""
        room = self._rooms[record.room_id]
        self._rooms.move_to_end(record.room_id)
        room.position = record.position
        present = frozenset(room.members)
        for one in memberships_of(record, self._server_name):
            self._set(room, one.user_id, is_member=one.membership == "join")
        return present.union(room.members) if room.members else present

    def trim(self) -> None:
        """Forget the rooms that were quiet for the longest time, if there are too many."""
        while len(self._rooms) > MAX_ROOMS or (self._count > MAX_MEMBERS and len(self._rooms) > 1):
            self._forget(next(iter(self._rooms)))

    def _forget(self, room_id: RoomId) -> None:
        room = self._rooms.pop(room_id, None)
        if room is not None:
            self._count -= room.count()

    def _set(self, room: _Room, user_id: UserId, *, is_member: bool) -> None:
        for service_id in self._namespaces.of_user(user_id):
            members = room.members.setdefault(service_id, set())
            self._count -= len(members)
            (members.add if is_member else members.discard)(user_id)
            self._count += len(members)
            if not members:
                del room.members[service_id]


async def load_aliased(
    accounts: Database, namespaces: Namespaces, room_ids: Iterable[RoomId]
) -> dict[RoomId, Services]:
    """The services that have to do with rooms because of their aliases. Raises DatabaseUnavailable."""
    rooms = list(dict.fromkeys(room_ids))
    if not namespaces.with_aliases or not rooms:
        return {}
    async with accounts.reading() as tx:
        aliases = await appservice_reads.list_aliases(tx, rooms)
    return {room_id: services for room_id, names in aliases.items() if (services := namespaces.of_aliases(names))}

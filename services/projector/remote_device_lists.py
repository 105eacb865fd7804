"""Whose device lists other servers tell us of no longer, from room.log.

A server tells of its users' devices as long as they share a room with somebody here. Once the last such room is left,
by them or by the last of us, the list that is kept may be wrong: it is stale, and is asked for when there is a room
in common again, or forgotten.

Spec: S-S API §Device Management.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from tessera.record_consumer import NOTHING_TO_APPLY, AfterCommit
from tessera.records import EventBody, LogRecord, StateBody
from tessera.storage import remote_devices, resident_rooms
from tessera.storage.database import Database, Transaction
from tessera.storage.shards import RoomShards

CONSUMER = "remote_device_lists"
_MEMBER = "m.room.member"


@dataclass(frozen=True, slots=True)
class RemoteDeviceListsStep:
    """Marks the lists of users with whom nobody here shares a room any longer."""

    accounts: Database
    shards: RoomShards
    server_name: ServerName

    def concerns(self, record: LogRecord) -> bool:
        """Somebody may have left."""
        return next(_leavers(record), None) is not None

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """The users whose lists are kept and who share no other room."""
        left: list[tuple[UserId, RoomId]] = []
        rooms: dict[RoomId, None] = {}
        for record in records:
            for user_id in _leavers(record):
                if server_of(user_id) == self.server_name:
                    rooms[record.room_id] = None
                else:
                    left.append((user_id, record.room_id))
        left += await self._list_members_of_left(list(rooms))
        if not left:
            return NOTHING_TO_APPLY
        async with self.accounts.reading() as tx:
            kept = set(await remote_devices.list_kept(tx, sorted({user_id for user_id, _ in left})))
        left = [one for one in left if one[0] in kept]
        for database in self.shards.databases.values():
            if left:
                async with database.reading() as tx:
                    kept -= await remote_devices.list_sharing_elsewhere(tx, left, self.server_name)
        return sorted(kept) or NOTHING_TO_APPLY

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """A replay has the lists asked for once more."""
        await remote_devices.mark_stale(tx, cast("list[UserId]", prepared))
        return None

    async def _list_members_of_left(self, rooms: Sequence[RoomId]) -> list[tuple[UserId, RoomId]]:
        """The members of those of the rooms in which nobody of this server is left: two queries a shard at most."""
        found: list[tuple[UserId, RoomId]] = []
        for shard, names in self.shards.group_rooms(rooms).items():
            async with self.shards.databases[shard].reading() as tx:
                followed = await resident_rooms.list_rooms_of_server(tx, names, self.server_name)
                if gone := [room_id for room_id in names if room_id not in followed]:
                    found += await remote_devices.list_members_of_others(tx, gone, self.server_name)
        return found


def _leavers(record: LogRecord) -> Iterator[UserId]:
    body = record.body
    if isinstance(body, EventBody) and body.membership in ("leave", "ban"):
        names = [body.state_key]
    elif isinstance(body, StateBody):
        names = [state_key for event_type, state_key, _ in body.changes if event_type == _MEMBER]
    else:
        return
    for name in names:
        try:
            yield parse_user_id(name)
        except InvalidIdentifier:
            continue

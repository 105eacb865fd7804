"""People of other servers, as the rooms show them, for the user directory.

Spec: C-S API §User Directory; DESIGN.md section 2, invariant 12.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from matrixcore.identifiers import RoomId, ServerName, UserId
from tessera.rebuilding import Progress, walk_rooms
from tessera.storage import user_directory
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.storage.user_directory import DirectoryUser

MEMBERS = 2_000  # read at once


def person_of(user_id: UserId, content: Mapping[str, Any]) -> DirectoryUser:
    """A user as a member event shows them; values of a wrong type are as if they were missing."""

    def text(key: str) -> str | None:
        value = content.get(key)
        return value.replace("\0", "") if isinstance(value, str) else None

    return DirectoryUser(user_id, text("displayname"), text("avatar_url"), is_local=False)


async def read_people(
    database: Database, room_id: RoomId, server_name: ServerName
) -> AsyncIterator[list[DirectoryUser]]:
    """The joined members of a room who are not of this server, page by page."""
    after = ""
    while True:
        async with database.reading() as tx:
            members = await user_directory.list_remote_members(tx, room_id, server_name, after, MEMBERS)
        if members:
            yield [person_of(one.user_id, orjson.loads(one.pdu)["content"]) for one in members]
            after = members[-1].user_id
        if len(members) < MEMBERS:
            return


@dataclass(frozen=True, slots=True)
class PeopleRebuilder:
    """Notes all people of other servers again. Repeatable, and harmless beside the projector."""

    accounts: Database
    shards: RoomShards
    server_name: ServerName

    async def rebuild(self, partitions: Sequence[int]) -> AsyncIterator[Progress]:
        """One step a page of rooms."""
        async for partition, database, room_ids in walk_rooms(self.shards, partitions):
            seen = 0
            for room_id in room_ids:
                async for people in read_people(database, room_id, self.server_name):
                    async with self.accounts.transaction() as tx:
                        await user_directory.set_remote_users(tx, people)
                    seen += len(people)
            yield Progress(partition, len(room_ids), seen)

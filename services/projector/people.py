"""People of other servers from room.log, for the user directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from matrixcore.identifiers import ServerName, UserId, server_of
from tessera.record_consumer import NOTHING_TO_APPLY, AfterCommit
from tessera.records import EventBody, LogRecord, StateBody
from tessera.remote_people import person_of, read_people
from tessera.storage import user_directory
from tessera.storage.database import Transaction
from tessera.storage.shards import RoomShards
from tessera.storage.user_directory import DirectoryUser

CONSUMER = "people"
_MEMBER = "m.room.member"


@dataclass(frozen=True, slots=True)
class PeopleStep:
    """Notes how users of other servers are called where they join. Spec: C-S API §User Directory."""

    shards: RoomShards
    server_name: ServerName

    def concerns(self, record: LogRecord) -> bool:
        """Their joins, and what changes memberships without an event: our own join of their room above all."""
        match record.body:
            case EventBody(membership="join", state_key=str() as user_id):
                return server_of(UserId(user_id)) != self.server_name
            case StateBody(changes=changes, staged=staged):
                return staged is not None or any(change[0] == _MEMBER for change in changes)
            case _:
                return False

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """The people in the records; rooms that changed as a whole are read as they are now."""
        people: list[DirectoryUser] = []
        for record in records:
            if isinstance(record.body, EventBody):
                content = orjson.loads(record.body.client + b"}")["content"]
                people.append(person_of(UserId(record.body.state_key or ""), content))
        # Last: a room as it is now is newer than any record of it.
        changed = dict.fromkeys(record.room_id for record in records if isinstance(record.body, StateBody))
        for room_id in changed:
            async for page in read_people(self.shards.of_room(room_id), room_id, self.server_name):
                people += page
        return people or NOTHING_TO_APPLY

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """A replay notes the same once more."""
        await user_directory.set_remote_users(tx, cast("list[DirectoryUser]", prepared))
        return None

"""Local users who join a room that follows another one take their settings along.

A new room is believed only if the old one says so too: anybody can make a room that names somebody else's as its
predecessor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from matrixcore.identifiers import RoomId, ServerName
from tessera.fanout import Fanout
from tessera.memberships import memberships_of
from tessera.record_consumer import AfterCommit
from tessera.records import EventBody, LogRecord, StateBody
from tessera.storage import user_log
from tessera.storage.database import Transaction
from tessera.storage.room_reads.successions import list_predecessors, list_successors
from tessera.storage.shards import RoomShards
from tessera.upgraded_rooms import RoomMove, carry_settings

CONSUMER = "upgraded_rooms"


@dataclass(frozen=True, slots=True)
class UpgradedRoomsStep:
    """Copies tags, direct chats and push rules. Spec: C-S API §Room upgrades, "Server behaviour"."""

    shards: RoomShards
    fanout: Fanout
    server_name: ServerName

    def concerns(self, record: LogRecord) -> bool:
        """Joins of this server's users who were not joined before."""
        match record.body:
            case EventBody(membership="join"):
                return not _was_joined(record.body) and bool(memberships_of(record, self.server_name))
            case StateBody(memberships=memberships):
                return any(one.membership == "join" for one in memberships)
            case _:
                return False

    async def prepare(self, records: Sequence[LogRecord]) -> list[RoomMove]:
        """Whose settings go where: one query a shard for the new rooms and one for the old."""
        joins = [
            (one.user_id, record.room_id)
            for record in records
            for one in memberships_of(record, self.server_name)
            if one.membership == "join"
        ]
        predecessors: dict[RoomId, RoomId] = {}
        for name, rooms in self.shards.group_rooms({room_id for _, room_id in joins}).items():
            async with self.shards.databases[name].reading() as tx:
                predecessors |= await list_predecessors(tx, rooms)
        successors: dict[RoomId, RoomId] = {}
        for name, rooms in self.shards.group_rooms(set(predecessors.values())).items():
            async with self.shards.databases[name].reading() as tx:
                successors |= await list_successors(tx, rooms)
        followed = {new: old for new, old in predecessors.items() if successors.get(old) == new}
        return [RoomMove(user_id, followed[new], new) for user_id, new in joins if new in followed]

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """In the transaction of the cursor, so that what a user changes afterwards is not undone."""
        moves = cast("list[RoomMove]", prepared)
        heads = await carry_settings(tx, moves) if moves else {}
        if not heads:
            return None

        async def wake() -> None:
            await self.fanout.publish_user_wakes(user_log.wakes_of(heads))

        return wake


def _was_joined(body: EventBody) -> bool:
    return body.prev_content is not None and orjson.loads(body.prev_content).get("membership") == "join"

"""How much a user has not read: the number at an app's icon. Spec: Push Gateway API, `counts`."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from matrixcore.identifiers import RoomId, UserId
from services.push.evaluating import display_name_of
from tessera.storage import push_queue, push_rules, read_positions, user_rooms
from tessera.storage.database import Database
from tessera.storage.room_reads.members import list_member_contents
from tessera.storage.shards import RoomShards
from tessera.unread import ReadPoints, RoomUnread, count_unread, own_evaluator, read_points

COUNTED_MEMBERSHIPS = ("join", "invite")


@dataclass(frozen=True, slots=True)
class Badge:
    """A user's unread counts.

    Attributes:
        unread: rooms or messages, as the operator wants them; invites too.
        points: how far the user has read, by room.
    """

    unread: int
    points: dict[RoomId, ReadPoints]


@dataclass(frozen=True, slots=True)
class BadgeCounter:
    """Counts over all shards. `by_room` counts rooms, not messages."""

    accounts: Database
    shards: RoomShards
    by_room: bool

    async def count(self, user_id: UserId) -> Badge:
        """The user's counts now; one statement a shard, two for who has rules of their own."""
        async with self.accounts.reading() as tx:
            rooms = await user_rooms.list_rooms(tx, user_id, COUNTED_MEMBERSHIPS)
            joined = [room.room_id for room in rooms if room.membership == "join"]
            points = read_points(await read_positions.list_of_rooms(tx, user_id, joined))
            stored = await push_rules.find_rules(tx, user_id)
            ignored_list = (await push_queue.list_ignored_lists(tx, [user_id])).get(user_id)
        ignored = _ignored(ignored_list)
        evaluator = own_evaluator(user_id, stored)

        async def of_shard(name: str, own: Sequence[RoomId]) -> list[RoomUnread]:
            async with self.shards.databases[name].reading() as tx:
                names = {}
                if evaluator is not None:
                    pdus = await list_member_contents(tx, own, user_id)
                    names = {room_id: display_name_of(pdu) or "" for room_id, pdu in pdus}
                counts = await count_unread(tx, user_id, own, points, evaluator, names, ignored)
            return list(counts.values())

        groups = self.shards.group_rooms(joined)
        found = await asyncio.gather(*(of_shard(name, own) for name, own in groups.items()))
        unread = [count.total.notify for counts in found for count in counts]
        invites = sum(room.membership == "invite" and room.sender not in ignored for room in rooms)
        return Badge(invites + (sum(map(bool, unread)) if self.by_room else sum(unread)), points)


def _ignored(content: bytes | None) -> frozenset[UserId]:
    users = None if content is None else orjson.loads(content).get("ignored_users")
    return frozenset(map(UserId, users)) if isinstance(users, dict) else frozenset()

"""Making projections anew while the server runs (DESIGN section 2, invariant 12).

A page of rooms is read in one snapshot with the head of its partition; what differs is written as
of that head, so that whatever the rooms have seen since wins. Repeatable, and harmless to run
beside the projector.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import RoomId, ServerName
from tessera.fanout import Fanout
from tessera.room_summaries import load_summaries
from tessera.storage import consumer_cursors, directory, projection_sources, user_log, user_rooms
from tessera.storage.database import Database
from tessera.storage.partitions import PartitionHead, list_heads
from tessera.storage.projection_sources import Listed, Member
from tessera.storage.shards import RoomShards
from tessera.storage.user_rooms import MembershipChange

PAGE = 200  # rooms


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild has come."""

    partition: int
    rooms: int  # looked at
    changed: int  # lines that were wrong


async def walk_rooms(
    shards: RoomShards, partitions: Sequence[int]
) -> AsyncIterator[tuple[int, Database, list[RoomId]]]:
    """The rooms of partitions, a page after the other: (partition, its database, rooms)."""
    for partition in partitions:
        database, after = shards.of_partition(partition), ""
        while True:
            async with database.reading() as tx:
                room_ids = await projection_sources.list_rooms_of_partition(tx, partition, after, PAGE)
            if not room_ids:
                break
            yield partition, database, room_ids
            after = room_ids[-1]


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """Brings projections back to what the room shards say."""

    accounts: Database
    shards: RoomShards
    fanout: Fanout
    server_name: ServerName

    async def rebuild_memberships(self, partitions: Sequence[int]) -> AsyncIterator[Progress]:
        """Users' room lists, with an entry in the user log for each line that was wrong. One step a page."""
        for partition in partitions:
            async for room_ids, head, members in self._pages(partition):
                changes = await self._differences(partition, room_ids, head, members)
                async with self.accounts.transaction() as tx:
                    heads = await user_rooms.apply_changes(tx, changes)
                    await consumer_cursors.clear_stale(tx, "memberships", room_ids)
                if heads:
                    await self.fanout.publish_user_wakes(user_log.wakes_of(heads))
                yield Progress(partition, len(room_ids), len(changes))

    async def rebuild_directory(self, partitions: Sequence[int]) -> AsyncIterator[Progress]:
        """The lines of the published directory."""
        for partition in partitions:
            async for room_ids, _, _ in self._pages(partition):
                summaries = await load_summaries(self.shards, room_ids)
                async with self.accounts.transaction() as tx:
                    await directory.set_summaries(tx, summaries)
                    await consumer_cursors.clear_stale(tx, "directory", room_ids)
                yield Progress(partition, len(room_ids), len(summaries))

    async def _pages(self, partition: int) -> AsyncIterator[tuple[list[RoomId], PartitionHead, list[Member]]]:
        after = ""
        while True:
            async with self.shards.of_partition(partition).snapshot() as tx:
                room_ids = await projection_sources.list_rooms_of_partition(tx, partition, after, PAGE)
                if not room_ids:
                    return
                head = (await list_heads(tx, [partition]))[partition]
                members = await projection_sources.list_local_memberships(tx, room_ids, self.server_name)
            yield room_ids, head, members
            after = room_ids[-1]

    async def _differences(
        self, partition: int, room_ids: Sequence[RoomId], head: PartitionHead, members: Sequence[Member]
    ) -> list[MembershipChange]:
        async with self.accounts.reading() as tx:
            listed = await projection_sources.list_listed_memberships(tx, room_ids)
        return differences(partition, head, members, listed)


def differences(
    partition: int, head: PartitionHead, members: Sequence[Member], listed: Sequence[Listed]
) -> list[MembershipChange]:
    """What has to be told to the account store so that `listed` becomes `members`.

    Lines that are newer than the snapshot are left alone: it knows nothing of them.
    """
    known = {(one.user_id, one.room_id): one for one in listed}
    changes: list[MembershipChange] = []
    for member in members:
        line = known.pop((member.user_id, member.room_id), None)
        if line is not None and (line.membership, line.event_id) == (member.membership, member.event_id):
            continue
        changes.append(
            MembershipChange(
                member.user_id,
                member.room_id,
                member.membership,
                member.event_id,
                member.sender,
                partition,
                head.incarnation,
                head.position,
                member.stripped_state,
            )
        )
    for line in known.values():
        if line.position > 0 and line.membership != "leave":  # position 0: from outside, no room of ours knows of it
            changes.append(
                MembershipChange(
                    line.user_id,
                    line.room_id,
                    "leave",
                    line.event_id,
                    line.sender,
                    partition,
                    head.incarnation,
                    head.position,
                )
            )
    return changes

"""Checks of what PostgreSQL holds, while the server runs: `tessera verify`.

Each page of rooms is read in one snapshot. A fault is told, never mended here: a projection is
mended by `tessera rebuild`, anything else needs a person.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import orjson

from matrixcore.event_hashes import check_content_hash, compute_event_id
from matrixcore.identifiers import RoomId, ServerName
from matrixcore.redaction import redact
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.clock import Clock
from tessera.rebuilding import PAGE, differences
from tessera.storage import projection_sources, verification
from tessera.storage.database import Database, Transaction
from tessera.storage.partitions import list_heads
from tessera.storage.shards import RoomShards
from tessera.storage.verification import StoredPdu

PDUS = 500  # events in memory at a time
PATIENCE_SECONDS = 5  # for what the projector has still to do


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it must be."""

    check: str  # density, chain, state, hash or memberships
    what: str


@dataclass(frozen=True, slots=True)
class Verified:
    """A partition that has been looked through."""

    partition: int
    rooms: int
    events: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Verifier:
    """Looks through the shards and the projections of them.

    Attributes:
        hashes: whether every event's ID is computed again, which takes most of the time.
    """

    accounts: Database
    shards: RoomShards
    server_name: ServerName
    clock: Clock
    hashes: bool = True

    async def verify(self, partitions: Sequence[int]) -> AsyncIterator[Verified]:
        """One partition after the other."""
        for partition in partitions:
            faults = await self._density(partition)
            rooms = events = 0
            after = ""
            while True:
                async with self.shards.of_partition(partition).snapshot() as tx:
                    room_ids = await projection_sources.list_rooms_of_partition(tx, partition, after, PAGE)
                    if not room_ids:
                        break
                    faults += [Fault("chain", what) for what in await verification.list_broken_chains(tx, room_ids)]
                    faults += [Fault("state", what) for what in await verification.list_wrong_state(tx, room_ids)]
                    faults += await self._memberships(tx, partition, room_ids)
                    for room_id in room_ids if self.hashes else ():
                        count, wrong = await _hashes(tx, room_id)
                        events += count
                        faults += wrong
                rooms += len(room_ids)
                after = room_ids[-1]
            yield Verified(partition, rooms, events, tuple(faults))

    async def _density(self, partition: int) -> list[Fault]:
        async with self.shards.of_partition(partition).snapshot() as tx:
            spans = await verification.list_density(tx, partition)
            heads = await list_heads(tx, [partition])
        faults: list[Fault] = []
        below = 0
        for span in spans:
            name = f"partition {partition}, incarnation {span.incarnation}"
            if span.size != span.last - span.first + 1:
                missing = span.last - span.first + 1 - span.size
                faults.append(Fault("density", f"{name}: {missing} positions are missing"))
            if span.first <= below or (below == 0 and span.first != 1):
                faults.append(Fault("density", f"{name}: begins at {span.first}"))
            below = span.last
        head = heads.get(partition)
        if head is None:
            faults.append(Fault("density", f"partition {partition} has no row in its shard"))
        elif spans and spans[-1].incarnation == head.incarnation and spans[-1].last != head.position:
            faults.append(Fault("density", f"partition {partition}: head {head.position}, log ends at {below}"))
        return faults

    async def _memberships(self, tx: Transaction, partition: int, room_ids: Sequence[RoomId]) -> list[Fault]:
        """Lines that differ from the rooms, and go on doing so: a change on its way is no fault."""
        head = (await list_heads(tx, [partition]))[partition]
        members = await projection_sources.list_local_memberships(tx, room_ids, self.server_name)
        for _ in range(PATIENCE_SECONDS):
            async with self.accounts.reading() as accounts:
                listed = await projection_sources.list_listed_memberships(accounts, room_ids)
            newer = {(one.user_id, one.room_id) for one in listed if (one.incarnation, one.position) > head}
            faults = [
                Fault("memberships", f"{change.room_id}: {change.user_id} should be {change.membership}")
                for change in differences(partition, head, members, listed)
                if (change.user_id, change.room_id) not in newer
            ]
            if not faults:
                break
            await self.clock.sleep(1)
        return faults


async def _hashes(tx: Transaction, room_id: RoomId) -> tuple[int, list[Fault]]:
    count, after = 0, ""
    faults: list[Fault] = []
    while page := await verification.list_pdus(tx, room_id, after, PDUS):
        count += len(page)
        faults += [Fault("hash", f"{room_id}: {pdu.event_id}") for pdu in page if not _is_whole(pdu)]
        after = page[-1].event_id
    return count, faults


def _is_whole(stored: StoredPdu) -> bool:
    """Whether the bytes still make the event's ID and content hash; versions 1 and 2 carry the ID themselves.

    An event that came with another content was stored redacted, so that its hash fits no more.
    """
    fields = orjson.loads(stored.pdu)
    rules = ROOM_VERSIONS[stored.room_version]
    if compute_event_id(fields, rules) != stored.event_id:
        return False
    return check_content_hash(fields, rules) or redact(fields, rules) == fields

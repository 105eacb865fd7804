"""The real room writer for the tests of /sync, with its announcements in the test's hands.

The writer publishes into a box: what comes out of it is published, lost, repeated or kept back as a test likes.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from forked_rooms import Dag

from matrixcore.event_building import build_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from services.rooms.service import RoomWriter
from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.clock import Clock
from tessera.commands import (
    Append,
    Command,
    CommandBody,
    CreateRoom,
    NewEvent,
    NotePurged,
    Outcome,
    OutcomeStatus,
    ReceivePdus,
    SetReceipts,
)
from tessera.fanout import LocalFanout, ReplyAddresses
from tessera.ids import IdSource
from tessera.memberships import changes_of_records, memberships_of
from tessera.records import LogRecord, PartitionBatch, Receipt
from tessera.room_commands import RoomCommands
from tessera.storage import inbox, partitions
from tessera.storage.inbox import NewInboxRow
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.shards import RoomShards
from tessera.storage.user_rooms import MembershipChange

SERVER = ServerName("here.org")
KEY = SigningKey("1", b"\x01" * 32)
RULES = ROOM_VERSIONS["11"]
TIMEOUT_SECONDS = 20.0


class WriteRefused(Exception):
    """The writer refused the command."""


@dataclass(slots=True)
class WrittenRoom:
    """What the tests need to know of a room."""

    room_id: RoomId
    partition: int
    members: dict[str, str] = field(default_factory=dict)


class BoxedFanout(LocalFanout):
    """Delivers outcomes, and keeps batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[PartitionBatch] = []

    async def publish_batches(
        self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
    ) -> None:
        self.batches.extend(batches)
        await super().publish_batches((), outcomes)


class WriterInHand:
    """Submits commands one at a time and answers what the writer made of them."""

    def __init__(
        self, shards: RoomShards, clock: Clock, commands: RoomCommands, box: BoxedFanout, ids: IdSource
    ) -> None:
        self._shards = shards
        self._clock = clock
        self._commands = commands
        self._box = box
        self._ids = ids
        self.rooms: dict[RoomId, WrittenRoom] = {}

    async def create(
        self, creator: UserId, *, name: str | None = None, visibility: str = "shared"
    ) -> list[PartitionBatch]:
        """A new public room with its creator in it; the last of `rooms`."""
        room_id = RoomId(f"!{self._ids.letters(18)}:{SERVER}")
        create = build_event(
            rules=RULES,
            room_id=room_id,
            sender=creator,
            event_type="m.room.create",
            state_key="",
            content={"room_version": "11"},
            origin_server_ts=self._clock.now_ms(),
            depth=1,
            prev_events=(),
            auth_events=(),
            server_name=SERVER,
            signing_key=KEY,
        )
        levels = {"users": {creator: 100}, "users_default": 50, "state_default": 0, "invite": 0, "ban": 0, "redact": 0}
        events = [
            NewEvent("m.room.member", creator, {"membership": "join"}),
            NewEvent("m.room.power_levels", "", levels),
            NewEvent("m.room.join_rules", "", {"join_rule": "public"}),
        ]
        if visibility != "shared":
            events.append(NewEvent("m.room.history_visibility", "", {"history_visibility": visibility}))
        if name is not None:
            events.append(NewEvent("m.room.name", "", {"name": name}))
        self.rooms[room_id] = WrittenRoom(room_id, self._shards.partition_of(room_id))
        return await self._submit(room_id, creator, CreateRoom("11", create.pdu, tuple(events)))

    async def member(
        self, room_id: RoomId, user_id: UserId, membership: str, *, sender: UserId | None = None, **content: Any
    ) -> PartitionBatch:
        """A member event; by the user unless a sender is given."""
        return await self.send(
            room_id, sender or user_id, "m.room.member", {"membership": membership, **content}, state_key=user_id
        )

    async def message(self, room_id: RoomId, sender: UserId, body: str, **content: Any) -> PartitionBatch:
        """A text message."""
        return await self.send(room_id, sender, "m.room.message", {"msgtype": "m.text", "body": body, **content})

    async def send(
        self,
        room_id: RoomId,
        sender: UserId,
        event_type: str,
        content: dict[str, Any],
        *,
        state_key: str | None = None,
        device: str | None = None,
        txn_id: str | None = None,
        redacts: EventId | None = None,
    ) -> PartitionBatch:
        """One event; an empty batch if the state already was so."""
        body = Append(NewEvent(event_type, state_key, content, redacts), device, txn_id)
        batches = await self._submit(room_id, sender, body)
        return joined_batch(self.rooms[room_id].partition, batches)

    async def redact(self, room_id: RoomId, sender: UserId, target: LogRecord) -> PartitionBatch:
        """A redaction and its effect."""
        event_id = target.event.event_id
        return await self.send(room_id, sender, "m.room.redaction", {"redacts": event_id}, redacts=event_id)

    async def dag(self, room_id: RoomId) -> Dag:
        """All events of a room."""
        return await Dag(room_id, RULES).read(self._shards.of_room(room_id))

    async def fork(
        self,
        dag: Dag,
        prev_event: EventId,
        sender: UserId,
        event_type: str,
        content: dict[str, Any],
        *,
        state_key: str | None = None,
        at_ms: int | None = None,
    ) -> PartitionBatch:
        """An event that another server puts on top of an older one."""
        room_id, now_ms = dag.room_id, self._clock.now_ms()
        event = dag.make(
            prev_event,
            sender,
            event_type,
            content,
            state_key,
            server=SERVER,
            key=KEY,
            at_ms=now_ms if at_ms is None else at_ms,
        )
        partition = self.rooms[room_id].partition
        row = NewInboxRow(partition, room_id, ServerName("there.org"), event.event_id, event.pdu, now_ms)
        async with self._shards.of_room(room_id).transaction() as tx:
            inbox_ids = await inbox.add(tx, [row])
        return joined_batch(partition, await self._submit(room_id, sender, ReceivePdus(tuple(inbox_ids))))

    async def over_gap(
        self, dag: Dag, prev_event: EventId, sender: UserId, body: str, *, missed: int
    ) -> PartitionBatch:
        """A message on `missed` others that never came, with the state before it as another server told it."""
        room_id, now_ms = dag.room_id, self._clock.now_ms()
        content = {"msgtype": "m.text", "body": "missed"}
        for _ in range(missed):
            lost = dag.make(prev_event, sender, "m.room.message", content, None, server=SERVER, key=KEY, at_ms=now_ms)
            state = dag.before([prev_event])
            dag.events[lost.event_id], dag.after[lost.event_id] = lost, state
            prev_event = lost.event_id
        seen = {**content, "body": body}
        event = dag.make(prev_event, sender, "m.room.message", seen, None, server=SERVER, key=KEY, at_ms=now_ms)
        told = orjson.dumps(list(dag.after[prev_event].values()))
        more = (now_ms, "new", False, told, None)
        partition = self.rooms[room_id].partition
        row = NewInboxRow(partition, room_id, ServerName("there.org"), event.event_id, event.pdu, *more)
        async with self._shards.of_room(room_id).transaction() as tx:
            inbox_ids = await inbox.add(tx, [row])
        return joined_batch(partition, await self._submit(room_id, sender, ReceivePdus(tuple(inbox_ids))))

    async def receipt(self, room_id: RoomId, user_id: UserId, event_id: EventId) -> PartitionBatch:
        """A public receipt."""
        receipt = Receipt(user_id, "m.read", "", event_id, self._clock.now_ms())
        batches = await self._submit(room_id, user_id, SetReceipts((receipt,)))
        return joined_batch(self.rooms[room_id].partition, batches)

    async def note_purged(self, room_id: RoomId) -> PartitionBatch:
        """Say that history of the room has been deleted."""
        (batch,) = await self._submit(room_id, UserId(""), NotePurged())
        return batch

    async def _submit(self, room_id: RoomId, sender: UserId, body: CommandBody) -> list[PartitionBatch]:
        room = self.rooms[room_id]
        command = Command(self._ids.random_bytes(32), room_id, room.partition, sender, self._clock.now_ms(), body)
        outcome = await self._commands.submit(command, timeout_seconds=TIMEOUT_SECONDS)
        if outcome.status is not OutcomeStatus.ACCEPTED:
            raise WriteRefused(outcome.errcode, outcome.error)
        batches, self._box.batches = self._box.batches, []
        for batch in batches:
            for record in batch.records:
                room.members.update((one.user_id, one.membership) for one in memberships_of(record, SERVER))
        return batches


def joined_batch(partition: int, batches: Sequence[PartitionBatch]) -> PartitionBatch:
    """The batches of one commit after another as one."""
    records = tuple(record for batch in batches for record in batch.records)
    if not records:
        return PartitionBatch(1, partition, 1, 0, ())
    incarnation = batches[0].incarnation
    return PartitionBatch(incarnation, partition, records[0].position, records[-1].position, records)


@asynccontextmanager
async def running_writer(shards: RoomShards, clock: Clock) -> AsyncIterator[WriterInHand]:
    """The room writer on these shards."""
    ids, box, bus = IdSource(), BoxedFanout(), LocalCommandBus("topic")
    for name, database in shards.databases.items():
        async with database.transaction() as tx:
            here = [number for number in range(shards.partitions) if shards.shard_of(number) == name]
            await partitions.add_partitions(tx, here)
    service = RoomWriter(
        server_name=SERVER,
        signing_key=KEY,
        shards=shards,
        commands=bus,
        records=LocalRecordBus(),
        fanout=box,
        clock=clock,
        ids=ids,
    )
    commands = RoomCommands(bus, box, ShardOutcomes(shards))
    await commands.start()
    tasks = [asyncio.create_task(service.run()), asyncio.create_task(commands.poll_overdue())]
    try:
        await service.wait_ready()
        yield WriterInHand(shards, clock, commands, box, ids)
    finally:
        await service.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await commands.stop()


def changes_of(batches: Sequence[PartitionBatch]) -> list[MembershipChange]:
    """The memberships that batches tell of."""
    return changes_of_records([record for batch in batches for record in batch.records], SERVER)

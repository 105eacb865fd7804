"""Room writers on real shards, with the bus, the fan-out and the log around them in the test's hands."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from matrixcore.event_building import build_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from services.rooms.service import RoomWriter
from tessera.bus import CommandBus, LocalCommandBus, LocalRecordBus, RecordBus
from tessera.clock import SystemClock
from tessera.commands import Append, Command, CommandBody, CreateRoom, NewEvent, Outcome, OutcomeStatus
from tessera.fanout import LocalFanout, ReplyAddresses
from tessera.ids import IdSource
from tessera.records import LogRecord, PartitionBatch
from tessera.room_commands import RoomCommands
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.partitions import add_partitions
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards

SERVER = ServerName("here.org")
KEY = SigningKey("1", b"\x01" * 32)
ALICE, BOB = (UserId(f"@{name}:{SERVER}") for name in ("alice", "bob"))
NOW_MS = 1_700_000_000_000
TIMEOUT_SECONDS = 30.0
LEVELS = {"events": {"m.room.topic": 0, "m.room.name": 0}}


class RememberingFanout(LocalFanout):
    """Keeps every batch that was published."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[PartitionBatch] = []

    async def publish_batches(
        self, batches: Sequence[PartitionBatch], outcomes: Sequence[Outcome], reply_to: ReplyAddresses | None = None
    ) -> None:
        self.batches.extend(batches)
        await super().publish_batches(batches, outcomes)


@dataclass(slots=True)
class World:
    """Shards, and what a writer needs beside them."""

    shards: RoomShards
    commands: RoomCommands
    bus: CommandBus
    records: RecordBus
    fanout: RememberingFanout
    ids: IdSource = field(default_factory=IdSource)

    @asynccontextmanager
    async def writer(self, name: str = "rooms", bus: CommandBus | None = None) -> AsyncIterator[RoomWriter]:
        """A running writer of all partitions that are free."""
        service = RoomWriter(
            server_name=SERVER,
            signing_key=KEY,
            shards=self.shards,
            commands=bus or self.bus,
            records=self.records,
            fanout=self.fanout,
            clock=SystemClock(),
            ids=self.ids,
            name=name,
        )
        running = asyncio.create_task(service.run())
        ready = asyncio.create_task(service.wait_ready())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        assert ready.done(), "the writer has ended"
        try:
            yield service
        finally:
            await service.stop()
            await running

    def command(
        self, room_id: RoomId, body: CommandBody, sender: UserId = ALICE, command_id: bytes | None = None
    ) -> Command:
        """A command under a new id, unless one is given."""
        partition = self.shards.partition_of(room_id)
        return Command(command_id or self.ids.random_bytes(32), room_id, partition, sender, NOW_MS, body)

    async def submit(self, command: Command) -> Outcome:
        """What the writer made of a command."""
        return await self.commands.submit(command, timeout_seconds=TIMEOUT_SECONDS)

    async def accepted(self, room_id: RoomId, body: CommandBody, sender: UserId = ALICE) -> Outcome:
        """The outcome of a command that must be accepted."""
        outcome = await self.submit(self.command(room_id, body, sender))
        assert outcome.status is OutcomeStatus.ACCEPTED, outcome.error
        return outcome

    def creation(self, version: str = "11", *more: NewEvent, creator: UserId = ALICE) -> Command:
        """The command for a new public room."""
        rules = ROOM_VERSIONS[version]
        is_named = rules.room_id_is_create_event_id
        content = {"room_version": version, "nonce": self.ids.letters(6)}
        if not rules.implicit_room_creator:
            content["creator"] = creator
        create = build_event(
            rules=rules,
            room_id=None if is_named else RoomId(f"!{self.ids.letters(18)}:{SERVER}"),
            sender=creator,
            event_type="m.room.create",
            state_key="",
            content=content,
            origin_server_ts=NOW_MS,
            depth=1,
            prev_events=(),
            auth_events=(),
            server_name=SERVER,
            signing_key=KEY,
            event_id=EventId(f"${self.ids.letters(18)}:{SERVER}") if version in ("1", "2") else None,
            reference_hashes={} if version in ("1", "2") else None,
        )
        levels = {**LEVELS, "users": {} if rules.privileged_creators else {creator: 100}}
        events = (
            NewEvent("m.room.member", creator, {"membership": "join"}),
            NewEvent("m.room.power_levels", "", levels),
            NewEvent("m.room.join_rules", "", {"join_rule": "public"}),
            *more,
        )
        return self.command(create.room_id, CreateRoom(version, create.pdu, events), creator)

    async def new_room(self, version: str = "11") -> RoomId:
        """A public room of Alice's."""
        command = self.creation(version)
        outcome = await self.submit(command)
        assert outcome.status is OutcomeStatus.ACCEPTED, outcome.error
        return command.room_id

    async def stored_records(self) -> dict[int, list[LogRecord]]:
        """All records of all partitions that have any."""
        stored: dict[int, list[LogRecord]] = {}
        for partition in range(self.shards.partitions):
            async with self.shards.of_partition(partition).reading() as tx:
                if records := await list_records(tx, partition, 0, 1 << 40, 100_000):
                    stored[partition] = records
        return stored

    def published_records(self) -> dict[int, list[LogRecord]]:
        """All records that were published, by partition."""
        published: dict[int, list[LogRecord]] = {}
        for batch in self.fanout.batches:
            published.setdefault(batch.partition, []).extend(batch.records)
        return published


@asynccontextmanager
async def make_world(
    shards: RoomShards, bus: CommandBus | None = None, records: RecordBus | None = None
) -> AsyncIterator[World]:
    """A world without a writer; the buses of one process unless others are given."""
    for name, database in shards.databases.items():
        async with database.transaction() as tx:
            await add_partitions(tx, [p for p in range(shards.partitions) if shards.shard_of(p) == name])
    bus, fanout = bus or LocalCommandBus("topic"), RememberingFanout()
    commands = RoomCommands(bus, fanout, ShardOutcomes(shards))
    await commands.start()
    polling = asyncio.create_task(commands.poll_overdue())
    try:
        yield World(shards, commands, bus, records or LocalRecordBus(), fanout)
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        await commands.stop()


def message(text: str = "x", **content: object) -> Append:
    """A text message."""
    return Append(NewEvent("m.room.message", None, {"msgtype": "m.text", "body": text, **content}))

"""Deciding commands: build a batch, commit it, bring memory up to date, answer and announce.

Whatever stands in the way of a batch is taken out of it, and the rest is built again, until each
command has its outcome or its partition is given up.

Spec: none; DESIGN.md section 3.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from services.rooms import metrics
from services.rooms.batch_builder import Building, CommandFailed, build_command, needed_rooms, take_loaded
from services.rooms.broken_commands import BrokenCommands
from services.rooms.foreseeing import foresee
from services.rooms.hot_rooms import HotRooms
from services.rooms.many_ends import has_many_ends
from services.rooms.needs import add_needs
from services.rooms.owned_partitions import RETRY_SECONDS, OwnedPartitions
from services.rooms.receiving import receive_command
from services.rooms.room_work import PartitionWork, Signer, StateNotLoaded
from tessera import tracing
from tessera.bus import Delivered
from tessera.clock import Clock
from tessera.commands import (
    Append,
    AppendPdu,
    Command,
    Draft,
    EnterRoom,
    NoteMembership,
    Outcome,
    ReceivePdus,
    Unpark,
    encode_outcome,
)
from tessera.fanout import Fanout
from tessera.records import PartitionBatch
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.rooms import Loaded, LoadRefused, Wanted, load
from tessera.storage.writer_batch import CommitRefused, CommitResult, CommitUnknown, Guard, WriterBatch, commit

log = structlog.get_logger(__name__)

MAX_LAG_MS = 3_600_000
MAX_REBUILDS = 20  # of one batch, whatever the reasons


class _Decided(Exception):
    """Some commands of the batch had outcomes already; nothing was written."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


class _PartitionLost(Exception):
    """A partition went while its batch was built; nothing was written, and somebody decides its commands anew."""

    def __init__(self, partition: int) -> None:
        super().__init__()
        self.partition = partition


@dataclass(slots=True)
class _Gathered:
    """Commands to be decided together, and where they came from.

    Attributes:
        offsets: partition -> command -> its offsets, as it may have been sent more than once.
        reply_to: who waits for which command.
    """

    commands: dict[bytes, Command] = field(default_factory=dict)
    offsets: dict[int, dict[bytes, list[int]]] = field(default_factory=dict)
    reply_to: dict[bytes, set[str]] = field(default_factory=dict)
    trace: tracing.BatchTrace | None = None

    def add(self, one: Delivered) -> None:
        """One more."""
        command = one.command
        self.commands.setdefault(command.id, command)
        self.offsets.setdefault(one.partition, {}).setdefault(command.id, []).append(one.offset)
        self.reply_to.setdefault(command.id, set()).add(command.reply_to)

    def offsets_of(self, partition: int, decided: Collection[bytes]) -> set[int]:
        """The offsets of those of a partition's commands that are decided."""
        own = self.offsets.get(partition, {})
        return {offset for command_id in decided for offset in own.get(command_id, ())}


def _apart(commands: Sequence[Command]) -> list[list[Command]]:
    """The commands in order, those alone that bring a whole room with them: nothing of it is in memory before."""
    parts: list[list[Command]] = [[]]
    for command in commands:
        if isinstance(command.body, EnterRoom):
            parts += [[command], []]
        else:
            parts[-1].append(command)
    return [part for part in parts if part]


class Decider:
    """Decides commands of one shard, one batch at a time; the caller holds `OwnedPartitions.writing`."""

    def __init__(
        self,
        shard: str,
        database: Database,
        partitions: OwnedPartitions,
        rooms: HotRooms,
        *,
        signer: Signer,
        fanout: Fanout,
        clock: Clock,
    ) -> None:
        self._shard = shard
        self._database = database
        self._partitions = partitions
        self._rooms = rooms
        self._signer = signer
        self._fanout = fanout
        self._clock = clock
        self._broken = BrokenCommands(database)
        self._gathered = _Gathered()

    async def decide_singly(self, one: Delivered) -> None:
        """Decide a command that may have ended the last writer: alone, its attempt counted before."""
        try:
            await self._broken.count_before(one.command)
        except (DatabaseUnavailable, OSError, TimeoutError) as error:
            log.warning("attempt not counted", error=str(error) or type(error).__name__)
            self._partitions.lose([one.partition], "attempts")
            return
        await self.decide([one])

    async def decide(self, delivered: Sequence[Delivered]) -> None:
        """Give each command its outcome, or give up its partition."""
        gathered = self._gathered = _Gathered()
        for one in delivered:
            if one.partition in self._partitions:
                gathered.add(one)
        if not gathered.commands:
            return
        commands = list(gathered.commands.values())
        metrics.BATCH_COMMANDS.observe(len(commands))
        gathered.trace = tracing.begin_batch(commands) if tracing.is_on() else None
        try:
            for part in _apart(commands):
                await self._decide(part)
        finally:
            self._broken.forget()
            if gathered.trace is not None:
                gathered.trace.end()
        self._rooms.evict()
        metrics.HOT_ROOMS_BYTES.labels(self._shard).set(self._rooms.size)

    async def _decide(self, commands: list[Command]) -> None:
        """Build and commit, again without whatever stands in the way."""
        for _ in range(MAX_REBUILDS):
            for command in commands:
                if self._broken.is_dead(command) and self._broken.has_parts(command):
                    for part in self._broken.take_apart(command):
                        await self._decide([part])
            commands = [command for command in commands if command.partition in self._partitions]
            if not commands:
                return
            try:
                async with self._database.reading() as tx:
                    building = await self._build(tx, commands)
                    await self._commit(tx, building, commands)
                    return
            except CommandFailed as failure:
                self._broken.note(failure.command)
                # What the command did to the hot room's memory before it raised is not known.
                self._rooms.forget([failure.command.room_id])
            except _Decided as decided:
                await self._answer_decided(decided.outcomes)
                known = {outcome.command_id for outcome in decided.outcomes}
                commands = [command for command in commands if command.id not in known]
            except _PartitionLost as lost:
                commands = [command for command in commands if command.partition != lost.partition]
            except CommitRefused as refused:
                metrics.RETRIES.labels("refused").inc()
                self._rooms.forget({command.room_id for command in commands})
                if refused.transient:
                    continue
                log.error("batch refused", commands=len(commands), error=str(refused))
                await self._bisect(commands)
                return
            except LoadRefused as refused:
                metrics.RETRIES.labels("refused").inc()
                log.error("rooms cannot be loaded", commands=len(commands), error=str(refused))
                await self._bisect(commands)
                return
            except CommitUnknown as unknown:
                log.warning("commit unknown", error=str(unknown))
                self._partitions.lose({command.partition for command in commands}, "unknown commit")
                return
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                metrics.RETRIES.labels("database").inc()
                log.warning("database unavailable", error=str(error) or type(error).__name__)
                await self._clock.sleep(RETRY_SECONDS)
            except Exception:  # nobody foresaw it: whose fault it is shows alone, and whatever was committed is decided
                metrics.RETRIES.labels("unforeseen").inc()
                log.exception("batch failed", commands=len(commands))
                self._rooms.forget({command.room_id for command in commands})
                if len(commands) == 1 and not self._broken.is_dead(commands[0]):
                    self._broken.note(commands[0])
                    continue
                await self._bisect(commands)
                return
        self._partitions.lose({command.partition for command in commands}, "no progress")

    # Building

    async def _build(self, tx: Transaction, commands: Sequence[Command]) -> Building:
        """The rows and outcomes of the commands, with one query for what is not in memory."""
        started = self._clock.monotonic()
        wanted = Wanted()
        for command in commands:
            if not self._broken.is_dead(command):
                add_needs(wanted, self._rooms.find(command.room_id), command, self._signer.server_name)
        loaded = await load(tx, wanted) if wanted else Loaded()
        take_loaded(self._rooms, wanted, loaded)
        foreseen = await foresee(tx, self._rooms, [one for one in commands if not self._broken.is_dead(one)])
        for _ in range(MAX_REBUILDS):
            works, now_ms = self._partition_works(commands), self._clock.now_ms()
            building = Building(works, loaded, now_ms, self._broken.parts, foreseen)
            try:
                with tracing.phase_of(self._gathered.trace, "rooms.build"):
                    for command in commands:
                        await self._build_one(tx, building, command)
            except StateNotLoaded as missing:
                await self._load_missing(tx, missing, loaded)
                continue
            metrics.BUILD_SECONDS.observe(self._clock.monotonic() - started)
            return building
        raise CommitRefused(RuntimeError("state was missing again and again"), transient=False)

    async def _build_one(self, tx: Transaction, building: Building, command: Command) -> None:
        records = building.partitions[command.partition].records
        first = len(records)
        if self._broken.is_dead(command):
            self._broken.bury(building, command)
        elif self._needs_past(building, command):
            await receive_command(tx, building, self._rooms, command, self._signer)
        else:
            build_command(building, self._rooms, command, self._signer)
        if self._gathered.trace is not None:
            self._gathered.trace.stamp(command.id, records, first)

    def _needs_past(self, building: Building, command: Command) -> bool:
        if isinstance(command.body, AppendPdu | ReceivePdus | Unpark | EnterRoom | NoteMembership):
            return True
        room = building.works.get(command.room_id) or self._rooms.find(command.room_id)
        return room is not None and isinstance(command.body, Append | Draft) and has_many_ends(room.extremities)

    async def _load_missing(self, tx: Transaction, missing: StateNotLoaded, loaded: Loaded) -> None:
        wanted = Wanted()
        wanted.state[(missing.room_id, *missing.key)] = None
        found = await load(tx, wanted)
        take_loaded(self._rooms, wanted, found)
        loaded.state.update(found.state)

    def _partition_works(self, commands: Sequence[Command]) -> dict[int, PartitionWork]:
        works: dict[int, PartitionWork] = {}
        for partition in sorted({command.partition for command in commands}):
            if (owned := self._partitions.find(partition)) is None:
                raise _PartitionLost(partition)
            works[partition] = PartitionWork(partition, owned.epoch, owned.incarnation, owned.head, owned.head)
        return works

    # Committing

    async def _commit(self, tx: Transaction, building: Building, commands: Sequence[Command]) -> None:
        """Commit, then bring memory up to date, answer and announce."""
        decided = {outcome.command_id for outcome in building.outcomes}
        finished = {partition: self._gathered.offsets_of(partition, decided) for partition in building.partitions}
        batch = WriterBatch(self._guards(building, finished))
        for outcome in building.outcomes:
            batch.outcomes.append((outcome.partition, outcome.command_id, int(outcome.status), encode_outcome(outcome)))
        for work in (*building.works.values(), *building.elsewhere.values()):
            work.write(batch)
        self._broken.write(batch, commands)
        started = self._clock.monotonic()
        with tracing.phase_of(self._gathered.trace, "rooms.commit"):
            result = await commit(tx, batch)
        if result.decided:
            raise _Decided(result.decided)
        metrics.COMMIT_SECONDS.observe(self._clock.monotonic() - started)
        # Two machines' clocks: good enough to be looked at, never to decide by.
        now_ms = self._clock.now_ms()
        # An application service may give an event a time long ago, which says nothing of a delay.
        waited = (now_ms - command.origin_server_ts for command in commands)
        metrics.LAG_SECONDS.observe(max((one for one in waited if 0 <= one < MAX_LAG_MS), default=0) / 1000)
        await self._after_commit(building, result, finished)

    def _guards(self, building: Building, finished: Mapping[int, Collection[int]]) -> list[Guard]:
        guards: list[Guard] = []
        for partition, part in building.partitions.items():
            owned = self._partitions.find(partition)
            if owned is None or owned.epoch != part.epoch:
                raise _PartitionLost(partition)
            done_offset = owned.done_with(finished[partition])
            guards.append(self._partitions.guard(owned, part.head, part.position, done_offset))
        return guards

    async def _after_commit(
        self, building: Building, result: CommitResult, finished: Mapping[int, Collection[int]]
    ) -> None:
        if fenced := building.partitions.keys() - result.moved:
            self._partitions.lose(fenced, "fenced")
        batches: list[PartitionBatch] = []
        for partition in result.moved:
            part = building.partitions[partition]
            self._move(part, finished[partition])
            if part.records:
                records = tuple(part.records)
                batches.append(PartitionBatch(part.incarnation, partition, part.head + 1, part.position, records))
                self._partitions.pump.offer(partition, part.records)
                metrics.RECORDS.inc(len(records))
        for work in building.works.values():
            if work.partition.partition in result.moved:
                for verdict, count in work.verdicts.items():
                    metrics.RECEIVED.labels(verdict).inc(count)
            if work.partition.partition in result.moved and work.partition.partition in self._partitions:
                self._rooms.put(work.adopt())
            elif not work.is_new:
                self._rooms.forget([work.room_id])
        outcomes = [outcome for outcome in building.outcomes if outcome.partition in result.moved]
        self._broken.settle(outcomes)
        with tracing.phase_of(self._gathered.trace, "rooms.publish"):
            await self._fanout.publish_batches(batches, outcomes, self._gathered.reply_to)

    def _move(self, part: PartitionWork, finished: Collection[int]) -> None:
        owned = self._partitions.find(part.partition)
        if owned is None or owned.epoch != part.epoch:
            return
        owned.head = part.position
        for offset in finished:
            owned.undone.pop(offset, None)
        owned.done_offset = owned.done_with(())
        self._partitions.reader.done(part.partition, owned.done_offset)

    async def _answer_decided(self, outcomes: Sequence[Outcome]) -> None:
        """Commands that were decided before get the same answer again, and count as done."""
        metrics.RETRIES.labels("decided").inc()
        self._broken.settle(outcomes)
        for outcome in outcomes:
            owned = self._partitions.find(outcome.partition)
            if owned is not None:
                for offset in self._gathered.offsets_of(outcome.partition, [outcome.command_id]):
                    owned.undone.pop(offset, None)
        await self._fanout.publish_batches([], outcomes, self._gathered.reply_to)

    # What PostgreSQL does not take

    async def _bisect(self, commands: list[Command]) -> None:
        """Find the room, and in it the command, that PostgreSQL does not take."""
        if len(commands) == 1:
            await self._decide_alone(commands[0])
            return
        by_room = list(needed_rooms(commands).values())
        parts = by_room if len(by_room) > 1 else [[command] for command in commands]
        middle = len(parts) // 2
        for half in (parts[:middle], parts[middle:]):
            await self._decide([command for part in half for command in part])

    async def _decide_alone(self, command: Command) -> None:
        """Bury a command by itself; without its letter if that is what PostgreSQL does not take."""
        if self._broken.give_up(command):
            await self._decide([command])
            return
        self._partitions.lose([command.partition], "no progress")
        await self._clock.sleep(RETRY_SECONDS)

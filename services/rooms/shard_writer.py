"""The writer of one shard: gather, build, commit, publish, again.

While a batch commits, commands gather in the reader; there is no timer. Everything in memory
(hot rooms, heads) changes only after the commit that it tells of.

Spec: none; DESIGN.md section 3.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from services.rooms import metrics
from services.rooms.announcing import Pump
from services.rooms.batch_builder import (
    Building,
    CommandFailed,
    build_command,
    needed_rooms,
    refuse,
    take_loaded,
)
from services.rooms.hot_rooms import HotRooms
from services.rooms.needs import add_needs
from services.rooms.ownership import Owner, Ownership
from services.rooms.receiving import receive_command
from services.rooms.room_work import PartitionWork, Refused, Signer, StateNotLoaded
from tessera import tracing
from tessera.bus import BusUnavailable, CommandBus, CommandReader, Delivered, RecordBus, TopicReplaced
from tessera.clock import Clock
from tessera.commands import AppendPdu, Command, Outcome, ReceivePdus, Unpark, encode_command, encode_outcome
from tessera.fanout import Fanout
from tessera.records import PartitionBatch
from tessera.storage import dead_letters
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.leases import TakenPartition
from tessera.storage.records import list_records
from tessera.storage.rooms import Loaded, LoadRefused, Wanted, load
from tessera.storage.writer_batch import (
    CommitRefused,
    CommitResult,
    CommitUnknown,
    Guard,
    WriterBatch,
    commit,
)

log = structlog.get_logger(__name__)

MAX_COMMANDS = 500  # of a batch
MAX_ATTEMPTS = 3  # of a command that breaks the writer
MAX_REBUILDS = 20  # of one batch, whatever the reasons
RETRY_SECONDS = 0.1
REPUBLISHED_RECORDS = 1_000  # a taker publishes this many of what may not have been published


class _Decided(Exception):
    """Some commands of the batch had outcomes already; nothing was written."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


@dataclass(slots=True)
class OwnedPartition:
    """A partition that this process writes.

    Attributes:
        undone: offsets taken and without an outcome, in order.
        careful_until: commands up to this offset run singly and are counted: they may have ended the last writer.
    """

    partition: int
    epoch: int
    incarnation: int
    head: int
    done_offset: int
    careful_until: int = -1
    undone: dict[int, None] = field(default_factory=dict)
    taken_offset: int = -1

    def done_with(self, offsets: Collection[int]) -> int:
        """The offset up to which everything is done once these are."""
        for offset in self.undone:
            if offset not in offsets:
                return offset - 1
        return max(self.taken_offset, self.done_offset)


class ShardWriter:
    """Writes the rooms of the partitions that it owns in one shard."""

    def __init__(
        self,
        shard: str,
        database: Database,
        placed: Callable[[], Sequence[int]],
        owner: Owner,
        *,
        signer: Signer,
        commands: CommandBus,
        records: RecordBus,
        fanout: Fanout,
        clock: Clock,
        hot_rooms_bytes: int,
    ) -> None:
        self._shard = shard
        self._database = database
        self._signer = signer
        self._commands = commands
        self._fanout = fanout
        self._clock = clock
        self._rooms = HotRooms(hot_rooms_bytes)
        self._owned: dict[int, OwnedPartition] = {}
        self._reader: CommandReader | None = None
        self._arrivals: list[TakenPartition] = []
        self._arrived = asyncio.Event()
        self._stopping = False
        self._stopped = asyncio.Event()
        self._attempts: dict[bytes, int] = {}  # of commands that broke the writer
        self._counted: set[bytes] = set()  # commands whose attempts are counted in PostgreSQL
        self._pump = Pump(database, records, clock)
        self._ownership = Ownership(database, owner, placed, clock, on_taken=self._on_taken, on_lost=self._on_lost)
        self._lost: set[int] = set()
        self._writing = asyncio.Lock()
        self._offsets: dict[int, dict[bytes, list[int]]] = {}  # of the batch: partition -> command -> offsets
        self._reply_to: dict[bytes, set[str]] = {}  # of the batch: who waits for which command
        self._trace: tracing.BatchTrace | None = None  # of the batch

    @property
    def ready(self) -> asyncio.Event:
        """Set once the free partitions have been taken for the first time."""
        return self._ownership.ready

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that are written here now."""
        return frozenset(self._owned)

    def lags(self) -> list[metrics.PartitionLag]:
        """How far each partition is behind, for the metrics."""
        return [
            metrics.PartitionLag(partition, len(owned.undone), self._pump.unannounced(partition))
            for partition, owned in self._owned.items()
        ]

    async def run(self) -> None:
        """Write until `stop`."""
        self._reader = await self._commands.open_reader()
        metrics.LAGS.sources.add(self.lags)
        try:
            async with asyncio.TaskGroup() as tasks:
                leases = tasks.create_task(self._ownership.run())
                pump = tasks.create_task(self._pump.run())
                arrivals = tasks.create_task(self._begin_partitions())
                giving = tasks.create_task(self._ownership.run_giving(self.hand_over))
                try:
                    await self._write()
                finally:
                    giving.cancel()
                    arrivals.cancel()
                    await self._finish()
                    pump.cancel()
                    await self._ownership.stop()
                    await leases
        finally:
            metrics.LAGS.sources.discard(self.lags)
            self._stopped.set()  # however it ended: nobody waits for it in vain

    async def stop(self) -> None:
        """Finish the batch, release the leases and end `run`."""
        self._stopping = True
        if self._reader is not None:
            await self._reader.close()
            await self._stopped.wait()

    async def check_leases(self) -> None:
        """For /ready. Raises LeasesNotKept."""
        await self._ownership.check()

    async def drain(self) -> None:
        """Hand every partition over to the other living writers of the shard, if there are any."""
        await self._ownership.drain(self.hand_over)

    async def hand_over(self, partition: int, name: str) -> bool:
        """Give one partition to the living writer of that name or owner; False if it stays here."""
        if partition not in self._owned or self._reader is None:
            return False
        await self._reader.revoke(partition)
        async with self._writing:  # the batch that may hold its commands has ended
            owned = self._owned.get(partition)
            if owned is None:
                return False
            owned.undone.clear()
            given = False
            try:
                await self._write_cursor([owned])
                async with self._database.reading() as tx:
                    given = await self._ownership.hand_over(tx, partition, name)
            finally:
                if given:
                    self._forget([partition])
                else:
                    await self._reader.assign(partition, owned.done_offset)
        return given

    # Taking and losing partitions

    def _on_taken(self, taken: Sequence[TakenPartition]) -> None:
        unclean = sum(not partition.clean for partition in taken)
        metrics.TAKEN.labels("clean").inc(len(taken) - unclean)
        metrics.TAKEN.labels("unclean").inc(unclean)
        self._arrivals.extend(taken)
        self._arrived.set()

    def _on_lost(self, partitions: Collection[int], reason: str) -> None:
        metrics.LOST.labels(reason).inc(len(partitions))
        self._forget(partitions)

    def _forget(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._owned.pop(partition, None)
            self._rooms.forget_partition(partition)
            self._pump.drop_partition(partition)
            self._lost.add(partition)
        self._arrived.set()
        metrics.PARTITIONS.labels(self._shard).set(len(self._owned))

    async def _begin_partitions(self) -> None:
        """Publish and announce what the last owner committed, then read the partition's commands."""
        assert self._reader is not None
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._lost:
                await self._reader.revoke(self._lost.pop())
            arrivals, self._arrivals = self._arrivals, []
            for taken in arrivals:
                try:
                    await self._begin(taken)
                except Exception as error:  # whatever it is: the partition is taken again, and the others go on
                    log.warning("partition cannot be begun", partition=taken.partition, error=repr(error))
                    await self._clock.sleep(RETRY_SECONDS)
                    self._ownership.lose([taken.partition], "begin")

    async def _begin(self, taken: TakenPartition) -> None:
        assert self._reader is not None
        partition = taken.partition
        await self._republish(taken)
        end_offset = await self._reader.end_offset(partition)
        if self._ownership.epochs.get(partition) != taken.epoch:
            return  # lost meanwhile
        # Offsets mean nothing in a topic that was made anew or has lost its end.
        known = taken.topic_id == self._reader.topic_id and taken.done_offset <= end_offset
        done_offset = taken.done_offset if known else -1
        careful_until = end_offset if known and not taken.clean else -1
        self._owned[partition] = OwnedPartition(
            partition, taken.epoch, taken.incarnation, taken.head, done_offset, careful_until, taken_offset=done_offset
        )
        self._pump.add_partition(partition, taken.announced, taken.head)
        await self._reader.assign(partition, done_offset if known else None)
        metrics.PARTITIONS.labels(self._shard).set(len(self._owned))

    async def _republish(self, taken: TakenPartition) -> None:
        """Wake whoever may not have heard of the last owner's commits."""
        if taken.announced >= taken.head:
            return
        after = max(taken.announced, taken.head - REPUBLISHED_RECORDS)
        async with self._database.reading() as tx:
            records = await list_records(tx, taken.partition, after, taken.head, REPUBLISHED_RECORDS)
        if records:
            first, last = records[0].position, records[-1].position
            batch = PartitionBatch(taken.incarnation, taken.partition, first, last, tuple(records))
            await self._fanout.publish_batches([batch], [])

    # Writing

    async def _write(self) -> None:
        assert self._reader is not None
        while not self._stopping:
            try:
                delivered = await self._reader.take(MAX_COMMANDS)
            except TopicReplaced as error:
                # At once: nobody may write the new topic's id beside an offset of the old one.
                self._ownership.lose(list(self._ownership.epochs), "topic")
                log.error("commands are read from the beginning", reason=str(error))
                continue
            except BusUnavailable as error:
                if not self._stopping:
                    log.warning("commands cannot be read", error=str(error))
                    await self._clock.sleep(RETRY_SECONDS)
                continue
            async with self._writing:
                await self._take(delivered)

    async def _take(self, delivered: Sequence[Delivered]) -> None:
        """Decide what was delivered: together, but for commands that may have ended the last writer."""
        together: list[Delivered] = []
        for one in delivered:
            owned = self._owned.get(one.partition)
            if owned is None:
                continue  # lost meanwhile: its next reader gets it
            if one.offset > owned.careful_until:
                together.append(one)
            elif await self._count_before(one):
                await self._take_together([one])
        await self._take_together(together)

    async def _count_before(self, one: Delivered) -> bool:
        """Count an attempt before it is made, as it may end this writer too; False if that could not be done."""
        command_id = one.command.id
        try:
            async with self._database.reading() as tx:
                attempts = await dead_letters.count_attempt(tx, one.partition, command_id)
        except (DatabaseUnavailable, OSError, TimeoutError) as error:
            log.warning("attempt not counted", error=str(error) or type(error).__name__)
            self._ownership.lose([one.partition], "attempts")
            return False
        self._counted.add(command_id)
        if attempts > MAX_ATTEMPTS:
            self._attempts[command_id] = MAX_ATTEMPTS
        return True

    async def _take_together(self, delivered: Sequence[Delivered]) -> None:
        commands: dict[bytes, Command] = {}
        offsets: dict[int, dict[bytes, list[int]]] = {}
        reply_to: dict[bytes, set[str]] = {}
        for one in delivered:
            owned = self._owned.get(one.partition)
            if owned is None:
                continue
            owned.undone[one.offset] = None
            owned.taken_offset = one.offset
            commands.setdefault(one.command.id, one.command)
            offsets.setdefault(one.partition, {}).setdefault(one.command.id, []).append(one.offset)
            reply_to.setdefault(one.command.id, set()).add(one.command.reply_to)
        if not commands:
            return
        self._offsets, self._reply_to = offsets, reply_to
        metrics.BATCH_COMMANDS.observe(len(commands))
        self._trace = tracing.begin_batch(list(commands.values())) if tracing.is_on() else None
        try:
            await self._decide(list(commands.values()))
        finally:
            if self._trace is not None:
                self._trace.end()
        self._rooms.evict()
        metrics.HOT_ROOMS_BYTES.labels(self._shard).set(self._rooms.size)

    async def _decide(self, commands: list[Command]) -> None:
        """Build and commit, again without whatever stands in the way, until each command has its outcome."""
        for _ in range(MAX_REBUILDS):
            commands = [command for command in commands if command.partition in self._owned]
            if not commands:
                return
            try:
                async with self._database.reading() as tx:
                    building = await self._build(tx, commands)
                    if await self._commit(tx, building, commands):
                        return
            except CommandFailed as failure:
                self._count_attempt(failure.command)
            except _Decided as decided:
                await self._answer_decided(decided.outcomes)
                known = {outcome.command_id for outcome in decided.outcomes}
                commands = [command for command in commands if command.id not in known]
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
                self._ownership.lose({command.partition for command in commands}, "unknown commit")
                return
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                metrics.RETRIES.labels("database").inc()
                log.warning("database unavailable", error=str(error) or type(error).__name__)
                await self._clock.sleep(RETRY_SECONDS)
            except Exception:  # nobody foresaw it: whose fault it is shows alone, and whatever was committed is decided
                metrics.RETRIES.labels("unforeseen").inc()
                log.exception("batch failed", commands=len(commands))
                self._rooms.forget({command.room_id for command in commands})
                await self._bisect(commands)
                return
        self._ownership.lose({command.partition for command in commands}, "no progress")

    async def _build(self, tx: Transaction, commands: Sequence[Command]) -> Building:
        """The rows and outcomes of the commands, with one query for what is not in memory."""
        started = self._clock.monotonic()
        wanted = Wanted()
        for command in commands:
            if self._attempts.get(command.id, 0) < MAX_ATTEMPTS:
                add_needs(wanted, self._rooms.find(command.room_id), command, self._signer.server_name)
        loaded = await load(tx, wanted) if wanted else Loaded()
        take_loaded(self._rooms, wanted, loaded)
        for _ in range(MAX_REBUILDS):
            building = Building(self._partition_works(commands), loaded, self._clock.now_ms())
            try:
                with tracing.phase_of(self._trace, "rooms.build"):
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
        if self._attempts.get(command.id, 0) >= MAX_ATTEMPTS:
            self._bury(building, command)
        elif isinstance(command.body, AppendPdu | ReceivePdus | Unpark):
            await receive_command(tx, building, self._rooms, command, self._signer)
        else:
            build_command(building, self._rooms, command, self._signer)
        if self._trace is not None:
            self._trace.stamp(command.id, records, first)

    async def _load_missing(self, tx: Transaction, missing: StateNotLoaded, loaded: Loaded) -> None:
        wanted = Wanted()
        wanted.state[(missing.room_id, *missing.key)] = None
        found = await load(tx, wanted)
        take_loaded(self._rooms, wanted, found)
        loaded.state.update(found.state)

    def _partition_works(self, commands: Sequence[Command]) -> dict[int, PartitionWork]:
        works: dict[int, PartitionWork] = {}
        for partition in sorted({command.partition for command in commands}):
            owned = self._owned[partition]
            works[partition] = PartitionWork(partition, owned.epoch, owned.incarnation, owned.head, owned.head)
        return works

    async def _commit(self, tx: Transaction, building: Building, commands: Sequence[Command]) -> bool:
        """Commit, then bring memory up to date, answer and announce."""
        assert self._reader is not None
        decided = {outcome.command_id for outcome in building.outcomes}
        batch = WriterBatch()
        finished: dict[int, set[int]] = {}
        for partition, part in building.partitions.items():
            owned = self._owned.get(partition)
            if owned is None or owned.epoch != part.epoch:
                raise CommitUnknown("the partition was lost while its batch was built")
            finished[partition] = {
                offset
                for command_id, offsets in self._offsets.get(partition, {}).items()
                if command_id in decided
                for offset in offsets
            }
            batch.guards.append(
                Guard(
                    partition,
                    part.epoch,
                    part.head,
                    part.position,
                    self._pump.announced(partition),
                    self._reader.topic_id,
                    owned.done_with(finished[partition]),
                )
            )
        for outcome in building.outcomes:
            batch.outcomes.append((outcome.partition, outcome.command_id, int(outcome.status), encode_outcome(outcome)))
        for work in building.works.values():
            work.write(batch)
        for command in commands:
            if self._attempts.get(command.id, 0) == MAX_ATTEMPTS and (text := _letter_of(command)) is not None:
                batch.rows["dead_letters"].append((command.partition, command.id, command.room_id, text, "raised"))
        if self._counted:
            counted = [command for command in commands if command.id in self._counted]
            batch.add("attempts_gone", ((command.partition, command.id) for command in counted))
        started = self._clock.monotonic()
        with tracing.phase_of(self._trace, "rooms.commit"):
            result = await commit(tx, batch)
        if result.decided:
            raise _Decided(result.decided)
        metrics.COMMIT_SECONDS.observe(self._clock.monotonic() - started)
        # Two machines' clocks: good enough to be looked at, never to decide by.
        oldest = min(command.origin_server_ts for command in commands)
        metrics.LAG_SECONDS.observe(max(0, self._clock.now_ms() - oldest) / 1000)
        await self._after_commit(building, result, finished)
        return True

    async def _after_commit(
        self, building: Building, result: CommitResult, finished: Mapping[int, Collection[int]]
    ) -> None:
        assert self._reader is not None
        if fenced := building.partitions.keys() - result.moved:
            self._ownership.lose(fenced, "fenced")
        batches: list[PartitionBatch] = []
        for partition in result.moved:
            part, owned = building.partitions[partition], self._owned.get(partition)
            if owned is not None and owned.epoch == part.epoch:
                owned.head = part.position
                for offset in finished[partition]:
                    owned.undone.pop(offset, None)
                owned.done_offset = owned.done_with(())
                self._reader.done(partition, owned.done_offset)
            if part.records:
                records = tuple(part.records)
                batches.append(PartitionBatch(part.incarnation, partition, part.head + 1, part.position, records))
                self._pump.offer(partition, part.records)
                metrics.RECORDS.inc(len(records))
        for work in building.works.values():
            if work.partition.partition in result.moved and work.partition.partition in self._owned:
                self._rooms.put(work.adopt())
            elif not work.is_new:
                self._rooms.forget([work.room_id])
        outcomes = [outcome for outcome in building.outcomes if outcome.partition in result.moved]
        for outcome in outcomes:
            self._attempts.pop(outcome.command_id, None)
            self._counted.discard(outcome.command_id)
        with tracing.phase_of(self._trace, "rooms.publish"):
            await self._fanout.publish_batches(batches, outcomes, self._reply_to)

    async def _answer_decided(self, outcomes: Sequence[Outcome]) -> None:
        """Commands that were decided before get the same answer again, and count as done."""
        assert self._reader is not None
        metrics.RETRIES.labels("decided").inc()
        for outcome in outcomes:
            self._attempts.pop(outcome.command_id, None)
            self._counted.discard(outcome.command_id)
            owned = self._owned.get(outcome.partition)
            if owned is None:
                continue
            for offset in self._offsets.get(outcome.partition, {}).get(outcome.command_id, ()):
                owned.undone.pop(offset, None)
        await self._fanout.publish_batches([], outcomes, self._reply_to)

    async def _bisect(self, commands: list[Command]) -> None:
        """Find the room, and in it the command, that PostgreSQL does not take."""
        by_room = list(needed_rooms(commands).values())
        if len(commands) == 1:
            await self._refuse_alone(commands[0])
            return
        parts = by_room if len(by_room) > 1 else [[command] for command in commands]
        middle = len(parts) // 2
        for half in (parts[:middle], parts[middle:]):
            await self._decide([command for part in half for command in part])

    async def _refuse_alone(self, command: Command) -> None:
        """Bury a command by itself; without its letter if that is what PostgreSQL does not take."""
        attempts = max(self._attempts.get(command.id, 0) + 1, MAX_ATTEMPTS)
        self._attempts[command.id] = attempts
        if attempts > MAX_ATTEMPTS + 1:
            del self._attempts[command.id]
            self._ownership.lose([command.partition], "no progress")
            await self._clock.sleep(RETRY_SECONDS)
            return
        await self._decide([command])

    def _count_attempt(self, command: Command) -> None:
        metrics.RETRIES.labels("failed").inc()
        self._attempts[command.id] = self._attempts.get(command.id, 0) + 1
        # What the command did to the hot room's memory before it raised is not known.
        self._rooms.forget([command.room_id])

    def _bury(self, building: Building, command: Command) -> None:
        """The command becomes a dead letter: kept, replayable, in nobody's way; one of invalid text is refused."""
        if _letter_of(command) is None:
            refusal = Refused(400, "M_BAD_JSON", "Text must be valid Unicode without NUL")
            building.outcomes.append(refuse(building, command, refusal))
            return
        metrics.DEAD_LETTERS.inc()
        log.error("dead letter", room_id=command.room_id, command_id=command.id.hex())
        refusal = Refused(500, "M_UNKNOWN", "The server could not do this; it has been noted")
        building.outcomes.append(refuse(building, command, refusal))

    # Ending

    async def _write_cursor(self, owned: Sequence[OwnedPartition]) -> None:
        """Write how far the commands are done and the records announced, as a batch without rows."""
        assert self._reader is not None
        batch = WriterBatch()
        for one in owned:
            batch.guards.append(
                Guard(
                    one.partition,
                    one.epoch,
                    one.head,
                    one.head,
                    self._pump.announced(one.partition),
                    self._reader.topic_id,
                    one.done_offset,
                )
            )
        async with self._database.reading() as tx:
            await commit(tx, batch)

    async def _finish(self) -> None:
        """Let the pump come to its end, and write down where everything stands."""
        for _ in range(20):
            if self._pump.is_settled():
                break
            await self._clock.sleep(0.05)
        try:
            if self._owned:
                await self._write_cursor(list(self._owned.values()))
        except (CommitUnknown, CommitRefused, DatabaseUnavailable) as error:
            log.warning("cursors not written", error=str(error))


def _letter_of(command: Command) -> bytes | None:
    """A command as it is kept; None if it has text that neither PostgreSQL nor JSON can hold."""
    try:
        text = encode_command(command)
    except (TypeError, ValueError):  # a lone surrogate
        return None
    return None if b"\\u0000" in text else text

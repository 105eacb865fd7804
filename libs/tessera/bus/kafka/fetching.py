"""Fetching some partitions of one topic: a session with each broker that leads any of them.

A fetch stays parked at the broker for up to `fetch_max_wait` and cannot take in a partition meanwhile. So a partition
that joins is fetched shortly on a second connection until the session's next request names it; what comes twice is
dropped by its offset.

Spec: none; DESIGN.md section 3, docs/adr/0005.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.errors import (
    FetchSessionIdNotFound,
    InvalidFetchSessionEpoch,
    OffsetOutOfRangeError,
    for_code,
)

from tessera.bus.kafka.connection import UNREACHABLE, KafkaConnection, to_its_end
from tessera.bus.kafka.fetch_request import (
    NO_SESSION,
    SESSIONLESS,
    FetchAnswer,
    FetchedPartition,
    FetchedRecord,
    SessionFetch,
)
from tessera.clock import Clock

log = structlog.get_logger(__name__)

_FETCH_BYTES = 4 << 20
_PARTITION_BYTES = 1 << 20
_JOINING_WAIT_MS = 20
_RETRY_SECONDS = 0.1
_LATER_RETRY_SECONDS = 0.3  # once it is more than a moment: a broker that starts needs the processor
_MOMENT_SECONDS = 1.0
_FAILING_SECONDS = 5.0  # without an answer of a broker, after which all is begun anew at the configured addresses
_LAST_EPOCH = (1 << 31) - 1
_STEADY, _JOINING = "steady", "joining"  # connections: a parked fetch holds up what comes after it

OffsetOf = Callable[[int], int]
OnFetched = Callable[[int, list[FetchedRecord], int], None]
OnOutOfRange = Callable[[int, int], Awaitable[None]]


class _Away(Exception):
    """Brokers do not answer where they were; they may have moved."""


@dataclass(slots=True, eq=False)
class _Session:
    """What is read from one broker.

    Attributes:
        asked: partition -> offset, as the broker knows them.
        changed: partitions that the next request names.
        forgotten: partitions that the next request takes out.
    """

    node: int
    id: int = NO_SESSION
    epoch: int = 0
    asked: dict[int, int] = field(default_factory=dict)
    changed: dict[int, None] = field(default_factory=dict)
    forgotten: dict[int, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    is_parked: bool = False
    failing_since: float | None = None

    @property
    def is_empty(self) -> bool:
        return not self.asked and not self.changed

    def add(self, partition: int) -> None:
        self.forgotten.pop(partition, None)
        self.changed[partition] = None
        self.wake.set()

    def remove(self, partition: int) -> None:
        self.changed.pop(partition, None)
        if self.asked.pop(partition, None) is not None:
            self.forgotten[partition] = None

    def reset(self) -> None:
        """The broker knows nothing of it any more: the next request names everything."""
        self.id, self.epoch = NO_SESSION, 0
        self.changed |= dict.fromkeys(self.asked)
        self.asked.clear()
        self.forgotten.clear()


class Fetcher:
    """Reads the partitions that are wanted, while `run` runs.

    Args:
        offset_of: where a wanted partition goes on.
        on_fetched: takes records, and the offset after them, of a partition; some it may have had already.
        on_out_of_range: told the offset at which a partition has nothing; it is read again from the next `begin` on.
        room: set while more may be fetched.
        pause_seconds: between an answer and the next request to a broker, so that what comes meanwhile comes together.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        clock: Clock,
        *,
        offset_of: OffsetOf,
        on_fetched: OnFetched,
        on_out_of_range: OnOutOfRange,
        room: asyncio.Event,
        pause_seconds: float = 0.0,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._clock = clock
        self._offset_of = offset_of
        self._on_fetched = on_fetched
        self._on_out_of_range = on_out_of_range
        self._room = room
        self._pause_seconds = pause_seconds
        self._wanted: dict[int, _Session | None] = {}
        self._highwater: dict[int, int] = {}
        self._client: AIOKafkaClient | None = None
        self._sessions: dict[int, _Session] = {}
        self._joining: dict[int, None] = {}
        self._joined = asyncio.Event()
        self._stale = asyncio.Event()  # who leads what is to be asked
        self._spread = asyncio.Event()  # there is a session that nobody follows yet

    def begin(self, partition: int) -> None:
        """Read a partition, from where it now goes on."""
        session = self._wanted.get(partition)
        if session is None:
            session = self._place(partition)
        else:
            session.add(partition)
        if session is None or session.is_parked:
            self._joining[partition] = None
            self._joined.set()

    def end(self, partition: int) -> None:
        """Read a partition no more."""
        session = self._wanted.pop(partition, None)
        self._joining.pop(partition, None)
        self._highwater.pop(partition, None)
        if session is not None:
            session.remove(partition)

    def highwater(self, partition: int) -> int | None:
        """The offset after the newest record of a wanted partition, as the last answer said."""
        return self._highwater.get(partition)

    async def run(self) -> None:
        """Run for ever; brokers that are away are waited for.

        Raises:
            ExceptionGroup: brokers refuse, or what they say makes no sense.
        """
        while True:
            try:
                await self._run_once()
            except* _Away as group:
                log.warning("brokers are away", topic=self._topic, error=str(group.exceptions[0]))
            await self._clock.sleep(_LATER_RETRY_SECONDS)

    async def _run_once(self) -> None:
        self._sessions.clear()
        self._wanted = dict.fromkeys(self._wanted)
        client = AIOKafkaClient(**self._connection.client_options())
        try:
            try:
                await to_its_end(client.bootstrap())
                await client.set_topics([self._topic])
            except UNREACHABLE as error:
                raise _Away(repr(error)) from error
            self._client = client
            self._place_all()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fetch_joining(client))
                tasks.create_task(self._keep_leaders(client))
                followed: set[int] = set()
                while True:
                    for node in self._sessions.keys() - followed:
                        followed.add(node)
                        tasks.create_task(self._follow(client, self._sessions[node]))
                    self._spread.clear()
                    await self._spread.wait()
        finally:
            self._client = None
            await client.close()

    # Who leads what

    def _place_all(self) -> None:
        for partition in self._wanted:
            self._place(partition)

    def _place(self, partition: int) -> _Session | None:
        """The session with the partition's leader, with the partition in it; None while it has no leader."""
        old = self._wanted.get(partition)
        node = self._leader_of(partition)
        if node is None:
            session = None
            self._stale.set()
        elif (session := self._sessions.get(node)) is None:
            session = self._sessions[node] = _Session(node)
            self._spread.set()
        if old is not session or session is None:
            self._wanted[partition] = session
            if old is not None:
                old.remove(partition)
            if session is not None:
                session.add(partition)
        return session

    def _leader_of(self, partition: int) -> int | None:
        if self._client is None:
            return None
        node: int | None = self._client.cluster.leader_for_partition(TopicPartition(self._topic, partition))
        return None if node is None or node < 0 else node

    async def _keep_leaders(self, client: AIOKafkaClient) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                async with asyncio.timeout(2 * self._connection.timeout_seconds):
                    await client.force_metadata_update()
            except UNREACHABLE as error:
                raise _Away(repr(error)) from error
            self._place_all()
            if self._stale.is_set():
                await self._clock.sleep(_RETRY_SECONDS)

    # Fetching

    async def _follow(self, client: AIOKafkaClient, session: _Session) -> None:
        while True:
            if session.is_empty:
                session.wake.clear()
                await session.wake.wait()
            if not self._room.is_set():
                await self._room.wait()
            try:
                answer = await self._ask(client, session)
            except UNREACHABLE as error:
                await self._bear(session, error)
                continue
            finally:
                session.is_parked = False
            session.failing_since = None
            if answer.error:
                error_type = for_code(answer.error)
                session.reset()
                if error_type not in (FetchSessionIdNotFound, InvalidFetchSessionEpoch):
                    await self._bear(session, error_type())
                continue
            session.id = answer.session
            session.epoch = 0 if session.id == NO_SESSION else session.epoch % _LAST_EPOCH + 1
            if await self._take(answer, session.asked, session):
                await self._clock.sleep(_RETRY_SECONDS)
            if session.id == NO_SESSION:
                session.reset()  # a broker without sessions: each request names everything
            if self._pause_seconds and answer.partitions:
                await self._clock.sleep(self._pause_seconds)

    async def _ask(self, client: AIOKafkaClient, session: _Session) -> FetchAnswer:
        moved = {partition: self._offset_of(partition) for partition in session.changed}
        forgotten = tuple(session.forgotten)
        session.changed.clear()
        session.forgotten.clear()
        session.asked |= moved
        for partition in moved:
            self._joining.pop(partition, None)
        session.is_parked = True
        request = SessionFetch(
            self._topic,
            moved,
            forgotten,
            session=session.id,
            epoch=session.epoch,
            wait_ms=self._connection.settings.fetch_max_wait,
            max_bytes=_FETCH_BYTES,
            partition_bytes=_PARTITION_BYTES,
        )
        answer: FetchAnswer = await client.send(session.node, request, group=_STEADY)
        return answer

    async def _bear(self, session: _Session, error: BaseException) -> None:
        """Wait after a failure, if it is not time to begin anew."""
        session.reset()
        self._stale.set()
        now = self._clock.monotonic()
        if session.failing_since is None:
            session.failing_since = now
        elif now - session.failing_since > _FAILING_SECONDS:
            raise _Away(repr(error)) from error
        is_new = now - session.failing_since < _MOMENT_SECONDS
        await self._clock.sleep(_RETRY_SECONDS if is_new else _LATER_RETRY_SECONDS)

    async def _fetch_joining(self, client: AIOKafkaClient) -> None:
        while True:
            self._joined.clear()
            if not self._joining:
                await self._joined.wait()
            by_node: dict[int, dict[int, int]] = {}
            for partition in self._joining:
                if (session := self._wanted.get(partition)) is not None:
                    by_node.setdefault(session.node, {})[partition] = self._offset_of(partition)
            if not by_node:
                await self._clock.sleep(_RETRY_SECONDS)
            for node, wanted in by_node.items():
                await self._room.wait()
                try:
                    is_refused = await self._fetch_once(client, node, wanted)
                except UNREACHABLE as error:
                    log.info("joining partitions not fetched", topic=self._topic, node=node, error=repr(error))
                    is_refused = True
                if is_refused:
                    await self._clock.sleep(_RETRY_SECONDS)

    async def _fetch_once(self, client: AIOKafkaClient, node: int, wanted: Mapping[int, int]) -> bool:
        request = SessionFetch(
            self._topic,
            wanted,
            epoch=SESSIONLESS,
            wait_ms=_JOINING_WAIT_MS,
            max_bytes=_FETCH_BYTES,
            partition_bytes=_PARTITION_BYTES,
        )
        return await self._take(await client.send(node, request, group=_JOINING), wanted, None)

    async def _take(self, answer: FetchAnswer, asked: Mapping[int, int], session: _Session | None) -> bool:
        """Hand on what came; True if the broker refused a partition for now."""
        if answer.error:
            return True
        refused: list[int] = []
        for fetched in answer.partitions:
            partition, offset = fetched.partition, asked.get(fetched.partition)
            if offset is None or partition not in self._wanted:
                continue
            if fetched.error:
                await self._take_error(fetched, offset, refused)
                continue
            self._highwater[partition] = fetched.highwater
            # Sought elsewhere meanwhile: there may be a gap before what came.
            if fetched.data and offset <= self._offset_of(partition):
                records, end = fetched.records(offset)
                self._on_fetched(partition, records, end)
                if session is not None and partition in session.asked:
                    session.changed[partition] = None
        if session is not None:
            session.changed |= dict.fromkeys(partition for partition in refused if partition in session.asked)
        return bool(refused)

    async def _take_error(self, fetched: FetchedPartition, offset: int, refused: list[int]) -> None:
        error = for_code(fetched.error)
        if error is OffsetOutOfRangeError:
            if (session := self._wanted.get(fetched.partition)) is not None:
                session.remove(fetched.partition)
                self._wanted[fetched.partition] = None
            await self._on_out_of_range(fetched.partition, offset)
        elif error.retriable or error.invalid_metadata:
            refused.append(fetched.partition)
            self._stale.set()
        else:
            raise error(f"partition {fetched.partition} of topic {self._topic} cannot be read")

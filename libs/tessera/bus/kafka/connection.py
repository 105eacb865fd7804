"""How one process reaches the cluster, and what it asks about topics beside reading and writing them.

The connection behind it never carries a parked fetch, so its answers come at once.

Spec: none; DESIGN.md sections 3 and 9.
"""

import asyncio
import ssl
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaClient
from aiokafka.errors import KafkaError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.offset import OffsetRequest

from tessera.bus.kafka.metadata_request import DescribeTopicsRequest
from tessera.bus.kafka.quieting import quiet_aiokafka
from tessera.bus.protocol import BusUnavailable
from tessera.config import KafkaSettings

log = structlog.get_logger(__name__)

_EARLIEST, _LATEST = -2, -1
_ANY_REPLICA = -1
_READ_UNCOMMITTED = 0
_LEADER_PAUSE_SECONDS = 0.05
# What a request may end with when brokers are away, are started again or move their partitions.
UNREACHABLE = (KafkaError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """One topic as the brokers know it.

    Attributes:
        topic_id: changes when the topic is made anew.
        leaders: the broker of each partition, -1 while there is none.
        replicas: how many brokers hold a partition, of the one with fewest.
    """

    name: str
    topic_id: str
    leaders: tuple[int, ...]
    replicas: int

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self.leaders)


class OffsetRange(NamedTuple):
    """What lies in a partition: `start` <= offset < `end`."""

    start: int
    end: int


class KafkaConnection:
    """The cluster of one process's buses."""

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        self.settings = settings
        self._client_id = client_id
        self._ssl_context = _ssl_context(settings)
        self._client: AIOKafkaClient | None = None
        self._opening = asyncio.Lock()
        quiet_aiokafka()

    @property
    def timeout_seconds(self) -> float:
        """After which a request counts as failed."""
        return self.settings.request_timeout / 1000

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return f"{self.settings.topic_prefix}{name}"

    def client_options(self) -> dict[str, Any]:
        """The arguments that every client of aiokafka takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.settings.bootstrap_servers),
            "client_id": self._client_id,
            "request_timeout_ms": self.settings.request_timeout,
            "metadata_max_age_ms": 60_000,
            "security_protocol": self.settings.security_protocol,
            "ssl_context": self._ssl_context,
        }
        if self.settings.security_protocol.startswith("SASL") and self.settings.sasl_password is not None:
            options["sasl_mechanism"] = self.settings.sasl_mechanism
            options["sasl_plain_username"] = self.settings.sasl_username
            options["sasl_plain_password"] = self.settings.sasl_password.get_secret_value()
        return options

    async def ping(self) -> None:
        """Return if a broker answers.

        Raises:
            BusUnavailable: none does.
        """
        await self.describe_topics([])

    async def describe_topics(self, names: Sequence[str]) -> dict[str, TopicDescription]:
        """Those of the topics that exist, by their full names.

        Raises:
            BusUnavailable: no broker answers, or it is older than Kafka 3.1.
        """
        response = await self._send(None, DescribeTopicsRequest(list(names)))
        found: dict[str, TopicDescription] = {}
        for error_code, name, topic_id, _internal, partitions, *_rest in response.topics:
            error = for_code(error_code)
            if error is UnknownTopicOrPartitionError:
                continue
            if error is not NoError:
                raise BusUnavailable(f"topic {name}: {error.__name__}")
            leaders = {partition: leader for _code, partition, leader, *_rest in partitions}
            replicas = min((len(holders) for _c, _p, _l, _e, holders, *_rest in partitions), default=0)
            found[name] = TopicDescription(
                name, str(topic_id), tuple(leaders.get(number, -1) for number in range(len(leaders))), replicas
            )
        return found

    async def offset_range(self, topic: str, partition: int) -> OffsetRange:
        """What lies in a partition now; see `offset_ranges`."""
        return (await self.offset_ranges(topic, [partition]))[partition]

    async def offset_ranges(self, topic: str, partitions: Collection[int]) -> dict[int, OffsetRange]:
        """What lies in each of some partitions now; two requests for each broker that leads any of them.

        Raises:
            BusUnavailable: one has no leader that answers, or there is no such topic.
        """
        found: dict[int, OffsetRange] = {}
        missing = list(partitions)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                while missing:
                    found |= await self._offset_ranges(topic, missing)
                    missing = [partition for partition in missing if partition not in found]
                    if missing:
                        await asyncio.sleep(_LEADER_PAUSE_SECONDS)
        except TimeoutError:
            raise BusUnavailable(f"partition {missing[0]} of topic {topic} has no leader") from None
        return found

    async def is_led(self, topic: TopicDescription) -> bool:
        """Whether every partition's leader knows that it leads: a moment later than the metadata say so."""
        by_leader: dict[int, list[tuple[int, int]]] = {}
        for partition, leader in enumerate(topic.leaders):
            by_leader.setdefault(leader, []).append((partition, _LATEST))
        if -1 in by_leader:
            return False
        for leader, wanted in by_leader.items():
            request = OffsetRequest(_ANY_REPLICA, _READ_UNCOMMITTED, [(topic.name, wanted)])
            response = await self._send(leader, request)
            if any(error_code for _partition, error_code, *_rest in response.topics[0][1]):
                return False
        return True

    async def close(self) -> None:
        """Close the connection; the clients that others made are theirs."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _offset_ranges(self, topic: str, partitions: Sequence[int]) -> dict[int, OffsetRange]:
        """What lies in these partitions, save those that have no leader, or another one than is known."""
        description = (await self.describe_topics([topic])).get(topic)
        by_leader: dict[int, list[int]] = {}
        for partition in partitions:
            if description is None or partition >= description.partitions:
                raise BusUnavailable(f"there is no partition {partition} of topic {topic}")
            by_leader.setdefault(description.leaders[partition], []).append(partition)
        found: dict[int, OffsetRange] = {}
        for leader, led in by_leader.items():
            starts = await self._offsets(leader, topic, led, _EARLIEST)
            ends = await self._offsets(leader, topic, led, _LATEST)
            found |= {one: OffsetRange(starts[one], ends[one]) for one in led if one in starts and one in ends}
        return found

    async def _offsets(self, leader: int, topic: str, partitions: Sequence[int], timestamp: int) -> dict[int, int]:
        """The offsets at one end, save those that the broker cannot tell now."""
        wanted = [(partition, timestamp) for partition in partitions]
        response = await self._send(leader, OffsetRequest(_ANY_REPLICA, _READ_UNCOMMITTED, [(topic, wanted)]))
        offsets: dict[int, int] = {}
        for partition, error_code, _timestamp, offset in response.topics[0][1]:
            error = for_code(error_code)
            if error is NoError:
                offsets[partition] = offset
            elif not error.retriable:
                raise BusUnavailable(f"partition {partition} of topic {topic}: {error.__name__}")
        return offsets

    async def _send(self, node: int | None, request: Any) -> Any:
        """The answer of one broker; without a node, of the first that gives one."""
        try:
            async with asyncio.timeout(self.timeout_seconds):
                client = await self._opened()
                known = [broker.nodeId for broker in client.cluster.brokers()]
                return await _first_answer(client, [node] if node in known else known, request)
        except UNREACHABLE as error:
            if node is None:
                await self.close()  # all may have moved: begin at the configured addresses again
            raise BusUnavailable(f"Kafka does not answer: {str(error) or type(error).__name__}") from error
        except NotImplementedError as error:
            raise BusUnavailable("the brokers are older than Kafka 3.1") from error

    async def _opened(self) -> AIOKafkaClient:
        async with self._opening:
            if self._client is None:
                client = AIOKafkaClient(**self.client_options())
                try:
                    await to_its_end(client.bootstrap())
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client


async def to_its_end(starting: Coroutine[Any, Any, None]) -> None:
    """Await the start of a client, which takes a request's time-out at most for each address, even if cancelled.

    One that is cut off leaves its first connection open.
    """
    task = asyncio.create_task(starting)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _first_answer(client: AIOKafkaClient, nodes: Sequence[int | None], request: Any) -> Any:
    for node in nodes[:-1]:
        try:
            return await client.send(node, request)
        except UNREACHABLE:
            continue
    return await client.send(nodes[-1] if nodes else None, request)


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    if not settings.security_protocol.endswith("SSL"):
        return None
    context = ssl.create_default_context(cafile=settings.ssl_cafile)
    if settings.ssl_certfile is not None:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    return context

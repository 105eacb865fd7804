"""Opening the buses of one process."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from tessera.bus.kafka.backlog import ReadDoneOffsets
from tessera.bus.kafka.cluster import Cluster
from tessera.bus.kafka.commands import KafkaCommandBus
from tessera.bus.kafka.connection import KafkaConnection
from tessera.bus.kafka.producing import Producing
from tessera.bus.kafka.records import KafkaRecordBus
from tessera.bus.kafka.topics import plan_topics
from tessera.clock import Clock
from tessera.config import KafkaSettings


class KafkaBuses(NamedTuple):
    """Both topics of one process."""

    commands: KafkaCommandBus
    records: KafkaRecordBus
    connection: KafkaConnection

    async def ping(self) -> None:
        """Return if a broker answers: a check for /ready.

        Raises:
            BusUnavailable: none does.
        """
        await self.connection.ping()


@asynccontextmanager
async def open_buses(
    settings: KafkaSettings,
    *,
    partitions: int,
    read_done: ReadDoneOffsets,
    clock: Clock,
    client_id: str = "tessera",
) -> AsyncIterator[KafkaBuses]:
    """The buses of one process; everything that was opened through them is closed at the end.

    Kafka may be away: sends then raise BusUnavailable, and readers wait for it.

    Args:
        partitions: of the database; the topics must have as many.
        read_done: how far writers have come (tessera.storage.done_offsets), for the bound on undone commands.
        client_id: shown in the brokers' logs.

    Raises:
        TopicsDisagree: the topics are missing or not as configured; a text of one line.
    """
    async with AsyncExitStack() as stack:
        connection = KafkaConnection(settings, client_id)
        stack.push_async_callback(connection.close)
        cluster = Cluster(connection, plan_topics(settings, partitions), clock)
        stack.push_async_callback(cluster.close)
        producing = Producing(connection, clock)
        stack.push_async_callback(producing.close)
        await cluster.check()
        commands = KafkaCommandBus(cluster, producing, read_done, clock)
        stack.push_async_callback(commands.close)
        records = KafkaRecordBus(cluster, producing, clock)
        stack.push_async_callback(records.close)
        yield KafkaBuses(commands, records, connection)

"""Commands, records and buses for the tests of the topics."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from matrixcore.identifiers import RoomId, UserId
from tessera.bus import CommandBus, RecordBus
from tessera.bus.kafka import DoneOffset, KafkaBuses, open_buses
from tessera.clock import SystemClock
from tessera.commands import Append, Command, CommandBody, NewEvent
from tessera.config import KafkaSettings
from tessera.records import Counters, EventBody, LogRecord, RecordKind

PARTITIONS = 4
ROOM = RoomId("!room:chat.example")


@dataclass
class DoneOffsets:
    """Stands for the rows of the partitions; counts who asks."""

    rows: dict[int, DoneOffset] = field(default_factory=dict)
    asked: int = 0

    async def __call__(self, partitions: Sequence[int]) -> Mapping[int, DoneOffset]:
        self.asked += 1
        return {partition: self.rows[partition] for partition in partitions if partition in self.rows}


@dataclass(frozen=True)
class Buses:
    """Both topics, and what stands for PostgreSQL."""

    commands: CommandBus
    records: RecordBus
    done: DoneOffsets


@asynccontextmanager
async def kafka_buses(
    settings: KafkaSettings, done: DoneOffsets | None = None, partitions: int = PARTITIONS
) -> AsyncIterator[KafkaBuses]:
    """The buses of one process on topics that are there."""
    async with open_buses(
        settings, partitions=partitions, read_done=done or DoneOffsets(), clock=SystemClock()
    ) as buses:
        yield buses


def command(number: int, partition: int = 0, body: CommandBody | None = None) -> Command:
    """The command of that number."""
    text = NewEvent("m.room.message", None, {"body": f"Grüße {number}"})
    return Command(
        number.to_bytes(32, "big"),
        ROOM,
        partition,
        UserId("@alice:chat.example"),
        1_700_000_000_000 + number,
        Append(text, sender_device="DEV", txn_id=str(number)) if body is None else body,
        reply_to="gateway-1",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def record(position: int, partition: int = 0, incarnation: int = 1) -> LogRecord:
    """The record at that position."""
    body = EventBody(
        event_id=f"$event{position}",
        type="m.room.message",
        state_key=None,
        sender=UserId("@alice:chat.example"),
        origin_server_ts=1_700_000_000_000 + position,
        client=f'{{"event_id":"$event{position}","content":{{"body":"Grüße"}}'.encode(),
        servers=("chat.example", "other.example"),
        counters=Counters(position, 0, 0, 0),
    )
    return LogRecord(incarnation, partition, position, ROOM, position - 1, RecordKind.EVENT, body)


def records(first: int, last: int, partition: int = 0) -> list[LogRecord]:
    """The records first..last."""
    return [record(position, partition) for position in range(first, last + 1)]

"""What Apache Kafka costs and how soon it wakes a reader: `python -m bench.kafka_floor`.

The buses of one process on a broker of their own (tests/fixtures/kafka_broker.py), 64 partitions, commands of about
700 bytes. Sends are sparse, so that every one finds the reader's fetch parked at the broker.
"""

import argparse
import asyncio
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import uvloop

from matrixcore.identifiers import RoomId, UserId
from tessera.bus.kafka import DoneOffset, KafkaBuses, open_buses
from tessera.clock import SystemClock
from tessera.commands import Append, Command, NewEvent
from tests.fixtures.kafka_broker import Broker, new_broker
from tests.fixtures.kafka_topics import make_topics, topic_prefix

PARTITIONS = 64
WAITS_MS = (500, 100, 20)
_TICKS = os.sysconf("SC_CLK_TCK")


async def _nothing_done(_partitions: Sequence[int]) -> Mapping[int, DoneOffset]:
    return {}


def _command(partition: int) -> Command:
    text = NewEvent("m.room.message", None, {"msgtype": "m.text", "body": "x" * 400})
    sender, room_id = UserId("@alice:bench.example"), RoomId("!abcdefghijklmnopqr:bench.example")
    return Command(random.randbytes(32), room_id, partition, sender, 1_700_000_000_000, Append(text, "DEVICEID", "m1"))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _percentiles(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, max {ordered[-1] * 1000:.1f} ms"


async def _with_buses(broker: Broker, wait_ms: int, measure: Callable[[KafkaBuses], Awaitable[None]]) -> None:
    settings = broker.settings(topic_prefix(), fetch_max_wait=wait_ms)
    await make_topics(settings, PARTITIONS)
    async with open_buses(settings, partitions=PARTITIONS, read_done=_nothing_done, clock=SystemClock()) as buses:
        # A new topic's partitions have leaders only after a moment.
        await asyncio.gather(*(buses.commands.send(_command(partition)) for partition in range(PARTITIONS)))
        await measure(buses)


async def wake_up(buses: KafkaBuses, count: int) -> None:
    """Acknowledgement and arrival of sparse commands at a reader that has half of the partitions."""
    reader = await buses.commands.open_reader()
    own = range(0, PARTITIONS, 2)
    for partition in own:
        await reader.assign(partition, 0)
    await asyncio.sleep(2)
    acknowledged: list[float] = []
    arrived: list[float] = []
    for _ in range(count):
        await asyncio.sleep(random.uniform(0.05, 0.15))
        started = time.perf_counter()
        arriving = asyncio.create_task(reader.take(10))
        await buses.commands.send(_command(random.choice(own)))
        acknowledged.append(time.perf_counter() - started)
        await arriving
        arrived.append(time.perf_counter() - started)
    print(f"  acknowledged  {_percentiles(acknowledged)}")
    print(f"  arrived       {_percentiles(arrived)}")
    await reader.close()


async def join(buses: KafkaBuses, count: int) -> None:
    """A partition with a waiting command joins a reader whose fetch is parked."""
    reader = await buses.commands.open_reader()
    await reader.assign(0, 0)
    await asyncio.sleep(2)
    joined: list[float] = []
    for number in range(count):
        partition = 1 + number % (PARTITIONS - 1)
        await buses.commands.send(_command(partition))
        end = (await reader.end_offsets([partition]))[partition]
        await asyncio.sleep(random.uniform(0.05, 0.15))
        started = time.perf_counter()
        await reader.assign(partition, end - 1)
        await reader.take(10)
        joined.append(time.perf_counter() - started)
        await reader.revoke(partition)
    print(f"  joined        {_percentiles(joined)}")
    await reader.close()


async def idle(buses: KafkaBuses, seconds: float, broker_pid: int | None) -> None:
    """What a reader of half of the partitions and the broker take when nothing happens."""
    reader = await buses.commands.open_reader()
    for partition in range(0, PARTITIONS, 2):
        await reader.assign(partition, 0)
    await asyncio.sleep(2)
    own, brokers = time.process_time(), 0.0 if broker_pid is None else _cpu_seconds(broker_pid)
    await asyncio.sleep(seconds)
    own = (time.process_time() - own) / seconds
    line = f"  idle          reader {own * 1000:.1f} ms of CPU a second"
    if broker_pid is not None:
        line += f", broker {(_cpu_seconds(broker_pid) - brokers) / seconds * 1000:.1f} ms"
    print(line)
    await reader.close()


async def send_many(buses: KafkaBuses, senders: int, seconds: float, broker_pid: int | None) -> None:
    """Senders that wait for their acknowledgements, and a reader of everything in the same process."""
    reader = await buses.commands.open_reader()
    for partition in range(PARTITIONS):
        await reader.assign(partition, 0)
    counted = [0, 0]
    ending = time.perf_counter() + seconds
    latencies: list[float] = []

    async def send() -> None:
        while time.perf_counter() < ending:
            started = time.perf_counter()
            await buses.commands.send(_command(random.randrange(PARTITIONS)))
            latencies.append(time.perf_counter() - started)
            counted[0] += 1

    async def read() -> None:
        while True:
            counted[1] += len(await reader.take(500))

    reading = asyncio.create_task(read())
    await asyncio.sleep(1)
    own, brokers = time.process_time(), 0.0 if broker_pid is None else _cpu_seconds(broker_pid)
    counted[:] = [0, 0]
    ending = time.perf_counter() + seconds
    await asyncio.gather(*(send() for _ in range(senders)))
    own = time.process_time() - own
    line = f"  {senders:2} senders    {counted[0] / seconds:.0f}/s, {_percentiles(latencies)}; "
    line += f"CPU for one, sender and reader together {own / counted[0] * 1000:.2f} ms"
    if broker_pid is not None:
        line += f", broker {(_cpu_seconds(broker_pid) - brokers) / counted[0] * 1000:.2f} ms"
    print(line)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await reader.close()


async def measure(broker: Broker, count: int, seconds: float) -> None:
    """All of it, one after the other."""
    pid: int | None = getattr(broker, "pid", None)
    for wait_ms in WAITS_MS if count else ():
        print(f"fetch_max_wait {wait_ms} ms")
        await _with_buses(broker, wait_ms, lambda buses: wake_up(buses, count))
        await _with_buses(broker, wait_ms, lambda buses: join(buses, count))
        await _with_buses(broker, wait_ms, lambda buses: idle(buses, seconds, pid))
    print("fetch_max_wait 500 ms, under load")
    for senders in (1, 8, 32):
        await _with_buses(broker, 500, lambda buses, n=senders: send_many(buses, n, seconds, pid))  # type: ignore[misc]  # mypy infers no lambda with a default


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="sends of each latency")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate and of each idle time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = new_broker(Path(folder) / "broker")
        broker.start()
        print(f"{broker.description}; Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}")
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measure(broker, arguments.count, arguments.seconds))
        finally:
            broker.kill()


if __name__ == "__main__":
    main()

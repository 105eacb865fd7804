"""What a batch costs on its way through Redis: latency, and CPU of the writer's end, the listener's end and the server.

    .venv/bin/python -m bench.fanout_floor [--batches 2000]

Three processes on this machine: Valkey on a Unix socket, one that publishes, one that listens. No HTTP, no database.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import uvloop

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.clock import SystemClock
from tessera.config import RedisSettings
from tessera.fanout import Subscriber
from tessera.fanout.redis import open_fanout
from tessera.ids import IdSource
from tessera.records import EventBody, LogRecord, PartitionBatch, RecordKind
from tests.fixtures.valkey import ValkeyProcess

PARTITIONS = 64
WANTED, UNWANTED = RoomId("!wanted:bench.example"), RoomId("!unwanted:bench.example")
MESSAGE = b'{"type":"m.room.message","content":{"msgtype":"m.text","body":"%b"},"sender":"@a:bench.example"' % (
    b"x" * 300
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """How much is published, how fast, and in which rooms.

    Attributes:
        rate: batches a second; 0 for as fast as it goes.
        records: of a batch.
        room_id: of all of them.
    """

    name: str
    rate: float
    records: int
    room_id: RoomId
    batches: int


def batch_of(scenario: Scenario, number: int) -> PartitionBatch:
    """The number-th batch; its events carry the moment of publishing, in microseconds."""
    partition = number % PARTITIONS
    first = number // PARTITIONS * scenario.records + 1
    now = time.monotonic_ns() // 1_000
    records = tuple(
        LogRecord(
            1,
            partition,
            position,
            scenario.room_id,
            position - 1,
            RecordKind.EVENT,
            EventBody(EventId(f"$event{position}"), "m.room.message", None, UserId("@a:bench.example"), now, MESSAGE),
        )
        for position in range(first, first + scenario.records)
    )
    return PartitionBatch(1, partition, first, first + scenario.records - 1, records)


def listen(settings: RedisSettings, scenario: Scenario, listening: Event, results: Connection) -> None:
    """The process that listens."""

    async def run() -> None:
        async with open_fanout(settings, SystemClock(), IdSource()) as fanout:
            latencies: list[float] = []
            heard = 0
            finished = asyncio.Event()

            def on_batch(batch: PartitionBatch) -> None:
                nonlocal heard
                heard += 1
                if batch.records:
                    latencies.append(time.monotonic_ns() / 1e6 - batch.records[0].event.origin_server_ts / 1e3)
                if heard == scenario.batches:
                    finished.set()

            subscription = await fanout.subscribe(Subscriber(on_batch=on_batch, wants_room=WANTED.__eq__))
            await subscription.follow_partitions(range(PARTITIONS))
            listening.set()
            started = time.process_time()
            await finished.wait()
            results.send((time.process_time() - started, latencies))

    uvloop.run(run())


def publish(settings: RedisSettings, scenario: Scenario, results: Connection) -> None:
    """The process that publishes."""

    async def run() -> None:
        async with open_fanout(settings, SystemClock(), IdSource()) as fanout:
            loop = asyncio.get_running_loop()
            making = 0.0
            started, cpu = loop.time(), time.process_time()
            for number in range(scenario.batches):
                if scenario.rate:
                    await asyncio.sleep(max(0.0, started + number / scenario.rate - loop.time()))
                before = time.process_time()
                batch = batch_of(scenario, number)
                making += time.process_time() - before
                await fanout.publish_batches([batch], [])
                if not scenario.rate:
                    await fanout.publisher.flush()
            await fanout.publisher.flush()
            results.send((loop.time() - started, time.process_time() - cpu - making))

    uvloop.run(run())


def measure(server: ValkeyProcess, scenario: Scenario) -> None:
    """Run one scenario in fresh processes and print its line."""
    context = multiprocessing.get_context("spawn")
    settings = server.settings(f"bench{scenario.rate}-{scenario.records}:")
    listening = context.Event()
    heard, told = context.Pipe(duplex=False), context.Pipe(duplex=False)
    listener = context.Process(target=listen, args=(settings, scenario, listening, heard[1]))
    listener.start()
    listening.wait()
    server_before = server_cpu(server)
    publisher = context.Process(target=publish, args=(settings, scenario, told[1]))
    publisher.start()
    seconds, publishing = told[0].recv()
    receiving, latencies = heard[0].recv()
    serving = server_cpu(server) - server_before
    listener.join()
    publisher.join()
    count = scenario.batches
    line = f"{scenario.name:28} {count / seconds:8,.0f}/s  CPU a batch: publish {publishing / count * 1e6:6.0f} us, "
    line += f"receive {receiving / count * 1e6:6.0f} us, server {serving / count * 1e6:5.0f} us"
    if latencies:
        latencies.sort()
        line += f"; p50 {statistics.median(latencies):.2f} ms, p99 {latencies[int(len(latencies) * 0.99)]:.2f} ms"
    print(line, flush=True)


def server_cpu(server: ValkeyProcess) -> float:
    """CPU seconds of the server up to now."""
    with open(f"/proc/{server.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run all scenarios on a server of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2_000)
    count = parser.parse_args().batches
    scenarios = [
        Scenario("20 batches/s of 1", 20, 1, WANTED, max(100, count // 10)),
        Scenario("200 batches/s of 1", 200, 1, WANTED, count),
        Scenario("1,500 batches/s of 1", 1_500, 1, WANTED, count * 5),
        Scenario("one after another, of 1", 0, 1, WANTED, count * 5),
        Scenario("one after another, of 50", 0, 50, WANTED, count),
        Scenario("the same, nobody's rooms", 0, 50, UNWANTED, count),
    ]
    server = ValkeyProcess()
    server.start()
    try:
        for scenario in scenarios:
            measure(server, scenario)
    finally:
        server.remove()


if __name__ == "__main__":
    main()

"""What a send costs without HTTP: commands through the room writer to a committed row, and back.

    .venv/bin/python -m bench.writer_floor [--senders 8] [--sends 4000]

Uses a PostgreSQL of its own, with fsync, in a temporary folder. CPU is this process's alone.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from matrixcore.identifiers import RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from services.gateway.new_room import NewRoom, parse_new_room
from services.gateway.room_changes import RoomChanges, Session
from services.gateway.room_creation import RoomMaker
from services.rooms.service import RoomWriter
from tessera.bus import LocalCommandBus, LocalRecordBus
from tessera.clock import SystemClock
from tessera.commands import NewEvent
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.fanout import LocalFanout
from tessera.garbage_collector import settle_garbage_collector
from tessera.ids import IdSource
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.migrations import Tree, migrate
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.partitions import add_partitions
from tessera.storage.shards import RoomShards

PARTITIONS = 64
SERVER = ServerName("bench.example")


def public_room(creator: UserId) -> NewRoom:
    """A createRoom request."""
    return parse_new_room({"preset": "public_chat"}, creator, ROOM_VERSIONS["12"], None)


async def measure(database: Database, senders: int, sends: int) -> None:
    """Send `sends` messages, `senders` at a time, each sender in a room of its own."""
    clock, ids, fanout = SystemClock(), IdSource(), LocalFanout()
    key = SigningKey("a_bench", ids.random_bytes(32))
    shards = RoomShards({"main": database}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
    async with database.transaction() as tx:
        await add_partitions(tx, range(PARTITIONS))
    bus, records = LocalCommandBus(ids.token()), LocalRecordBus()
    writer = RoomWriter(
        server_name=SERVER,
        signing_key=key,
        shards=shards,
        commands=bus,
        records=records,
        fanout=fanout,
        clock=clock,
        ids=ids,
    )
    commands = RoomCommands(bus, fanout, ShardOutcomes(shards))
    changes = RoomChanges(commands, shards, database, fanout, clock, ids)
    maker = RoomMaker(changes, SERVER, key)
    await commands.start()
    running = asyncio.create_task(writer.run())
    await writer.wait_ready()
    people = [Session(UserId(f"@user{number}:{SERVER}"), "D") for number in range(senders)]
    rooms = [await maker.create(person, public_room(person.user_id)) for person in people]
    latencies: list[float] = []

    async def send(person: Session, room_id: RoomId, count: int) -> None:
        for number in range(count):
            started = time.perf_counter()
            content = {"msgtype": "m.text", "body": f"message {number}"}
            await changes.append(room_id, person, NewEvent("m.room.message", None, content))
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(send(person, room, 20) for person, room in zip(people, rooms, strict=True)))
    latencies.clear()
    settle_garbage_collector()  # as a server does before it listens
    wall, cpu = time.perf_counter(), time.process_time()
    each = sends // senders
    await asyncio.gather(*(send(person, room, each) for person, room in zip(people, rooms, strict=True)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    latencies.sort()
    print(
        f"{len(latencies)} sends, {senders} at a time: {len(latencies) / wall:,.0f}/s, "
        f"CPU {cpu / len(latencies) * 1e3:.2f} ms each, "
        f"p50 {statistics.median(latencies) * 1e3:.1f} ms, p99 {latencies[int(len(latencies) * 0.99)] * 1e3:.1f} ms"
    )
    await writer.stop()
    await running
    await commands.stop()


async def main() -> None:
    """Run against a PostgreSQL of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--sends", type=int, default=4_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        async with EmbeddedPostgres(Path(folder)) as postgres:
            for tree in Tree:
                await migrate(postgres.dsn(), tree)
            database = await Database.connect(postgres.dsn())
            await measure(database, arguments.senders, arguments.sends)
            await database.close()


if __name__ == "__main__":
    asyncio.run(main())

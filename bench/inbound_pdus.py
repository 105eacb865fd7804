"""What it takes to receive events of another server: the same for Tessera and for Synapse, each with a PostgreSQL.

`python -m bench.inbound_pdus [tessera] [synapse]`: a small peer with TLS and keys of its own joins 50 rooms and sends
5,000 signed messages in transactions of 50, one in flight, one event of each room in each. Measured is the CPU of the
server (its database's apart) until all are in their rooms. `--single` sends each event in a transaction of its own.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from bench.process_costs import cpu_seconds, family, rss_mib
from matrixcore.identifiers import EventId, RoomId
from tessera.embedded_postgres import EmbeddedPostgres
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.small_peer import VERSION, small_peer
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.whole_server import Device

NAMES = ("tessera", "synapse")
SETTLE_SECONDS = 300.0
Costs = Callable[[], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Load:
    """How much is sent."""

    pdus: int
    rooms: int
    of_a_transaction: int


def costs_of(server: int, database: int | None = None) -> Costs:
    """(the server's, its database's) CPU seconds so far; the database may be among the server's own children."""

    def costs() -> tuple[float, float]:
        both = {*family(server), *(() if database is None else family(database))}
        spent = [0.0, 0.0]
        for pid in both:
            try:
                is_database = (Path("/proc") / str(pid) / "comm").read_text().startswith("postgres")
            except OSError:
                continue
            spent[is_database] += cpu_seconds(pid)
        return spent[0], spent[1]

    return costs


async def measure(
    name: str, pid: int, costs: Costs, target: str, authority: PeerAuthority, device: Device, load: Load
) -> float:
    """Send, wait until all is there, and print; PDUs per CPU-second of the server."""
    rooms = [RoomId(await device.make_room(preset="public_chat", room_version=VERSION)) for _ in range(load.rooms)]
    async with small_peer(authority, target) as peer:
        for room_id in rooms:
            await peer.join(room_id)
        batches = [[peer.message(room_id, number) for room_id in rooms] for number in range(load.pdus // load.rooms)]
        before, started = costs(), time.monotonic()
        for number, batch in enumerate(batches):
            for start in range(0, len(batch), load.of_a_transaction):
                await peer.send(f"{name}-{number}-{start}", batch[start : start + load.of_a_transaction])
        sent = time.monotonic() - started
        for room_id in rooms:
            await until_there(device, room_id, peer.tips[room_id].event_id)
        took = time.monotonic() - started
        after = costs()
    server, database = after[0] - before[0], after[1] - before[1]
    pdus = len(batches) * load.rooms
    print(
        f"{name}: {pdus} PDUs in {load.rooms} rooms, {load.of_a_transaction} a transaction: sent in {sent:.1f} s, there"
        f" after {took:.1f} s; CPU {server:.2f} s ({1000 * server / pdus:.2f} ms a PDU, {pdus / server:.0f} PDUs a"
        f" CPU-second), database {database:.2f} s ({1000 * database / pdus:.2f} ms a PDU); {rss_mib(pid):.0f} MiB",
        flush=True,
    )
    return pdus / server


async def until_there(device: Device, room_id: RoomId, event_id: EventId) -> None:
    """When an event can be read by a member."""
    end = time.monotonic() + SETTLE_SECONDS
    path = f"/rooms/{quote(room_id)}/event/{quote(event_id, safe='')}"
    while True:
        try:
            await device.get(path)
        except AssertionError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.3)
        else:
            return


async def run_tessera(folder: Path, authority: PeerAuthority, load: Load) -> float:
    """Tessera in one process."""
    server = FederatedServer(folder / "tessera", authority)
    await server.start()
    try:
        async with server.connected() as api:
            device = await api.register("reader")
            return await measure(
                "tessera", server.pid, costs_of(server.pid), server.server_name, authority, device, load
            )
    finally:
        await server.stop()


async def run_synapse(folder: Path, authority: PeerAuthority, load: Load) -> float:
    """Synapse in one process, with the same PostgreSQL and its settings."""
    async with EmbeddedPostgres(folder / "postgres") as postgres:
        synapse = SynapseServer(folder / "synapse", authority, database=await synapse_database(postgres))
        await asyncio.to_thread(synapse.start)
        try:
            async with synapse.connected() as api:
                device = await api.register("reader")
                costs = costs_of(synapse.pid, postgres.pid)
                return await measure("synapse", synapse.pid, costs, synapse.server_name, authority, device, load)
        finally:
            await asyncio.to_thread(synapse.stop)


async def synapse_database(postgres: EmbeddedPostgres) -> dict[str, object]:
    """A database as Synapse wants it; its key `database`."""
    connection = await asyncpg.connect(postgres.dsn("postgres"))
    await connection.execute("CREATE DATABASE synapse ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    await connection.close()
    parts = urlsplit(postgres.dsn("synapse"))
    args = {
        "user": parts.username,
        "password": parts.password,
        "host": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "port": parts.port or 5432,
        "dbname": "synapse",
        "cp_min": 5,
        "cp_max": 10,
    }
    return {"name": "psycopg2", "args": args}


async def run(names: list[str], load: Load) -> None:
    """All servers that are asked for, one after the other."""
    with tempfile.TemporaryDirectory(prefix="ip-") as text:
        folder = Path(text)
        (folder / "ca").mkdir()
        authority = PeerAuthority(folder / "ca")
        figures: dict[str, float] = {}
        if "tessera" in names:
            figures["tessera"] = await run_tessera(folder, authority, load)
        if "synapse" in names:
            figures["synapse"] = await run_synapse(folder, authority, load)
    if len(figures) == 2:
        print(f"ratio: {figures['tessera'] / figures['synapse']:.1f}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES))
    parser.add_argument("--pdus", type=int, default=5_000)
    parser.add_argument("--rooms", type=int, default=50)
    parser.add_argument("--single", action="store_true")
    arguments = parser.parse_args()
    if wrong := set(arguments.names).difference(NAMES):
        parser.error(f"unknown: {', '.join(wrong)}")
    load = Load(arguments.pdus, arguments.rooms, 1 if arguments.single else min(50, arguments.rooms))
    asyncio.run(run(arguments.names or list(NAMES), load))


if __name__ == "__main__":
    main()

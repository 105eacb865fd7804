"""What it takes to receive events of another server: the same for Tessera and for Synapse.

`python -m bench.inbound_pdus [tessera] [synapse]`: a small peer with TLS and keys of its own joins 50 rooms and sends
5,000 signed messages in transactions of 50, one in flight, one event of each room in each. Measured is the CPU of the
server (its database's apart) until all are in their rooms.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from matrixcore.identifiers import EventId, RoomId
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.small_peer import VERSION, small_peer
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.whole_server import Device

ROOMS, PDUS, OF_A_TRANSACTION = 50, 5_000, 50
TICKS = 100.0
JOIN_SECONDS, SETTLE_SECONDS = 60.0, 300.0


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(the server's, its database's) CPU of a process and all that it started and that still runs."""
    stats: dict[int, tuple[int, str, float]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue
            command, _, rest = text.partition("(")[2].rpartition(")")
            values = rest.split()
            stats[int(folder.name)] = (int(values[1]), command, (int(values[11]) + int(values[12])) / TICKS)
    server = database = 0.0
    family = {pid}
    for process in sorted(stats):  # a child's number may be lower only after a wrap
        parent, command, seconds = stats[process]
        if process == pid or parent in family:
            family.add(process)
            if command.startswith("postgres"):
                database += seconds
            else:
                server += seconds
    return server, database


async def measure(name: str, pid: int, target: str, authority: PeerAuthority, device: Device) -> float:
    """Send, wait until all is there, and print; PDUs per CPU-second of the server."""
    rooms = [RoomId(await device.make_room(preset="public_chat", room_version=VERSION)) for _ in range(ROOMS)]
    async with small_peer(authority, target) as peer:
        for room_id in rooms:
            await peer.join(room_id)
        batches = [[peer.message(room_id, number) for room_id in rooms] for number in range(PDUS // ROOMS)]
        before, started = cpu_seconds(pid), time.monotonic()
        for number, batch in enumerate(batches):
            for start in range(0, len(batch), OF_A_TRANSACTION):
                await peer.send(f"{name}-{number}-{start}", batch[start : start + OF_A_TRANSACTION])
        sent = time.monotonic() - started
        for room_id in rooms:
            await until_there(device, room_id, peer.tips[room_id].event_id)
        took = time.monotonic() - started
        after = cpu_seconds(pid)
    server, database = after[0] - before[0], after[1] - before[1]
    print(
        f"{name}: {PDUS} PDUs in {ROOMS} rooms: sent in {sent:.1f} s, there after {took:.1f} s; CPU {server:.2f} s"
        f" ({1000 * server / PDUS:.2f} ms a PDU, {PDUS / server:.0f} PDUs a CPU-second), database {database:.2f} s",
        flush=True,
    )
    return PDUS / server


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


async def run(names: list[str]) -> None:
    """All servers that are asked for, one after the other."""
    with tempfile.TemporaryDirectory(prefix="inbound-") as text:
        folder = Path(text)
        (folder / "ca").mkdir()
        authority = PeerAuthority(folder / "ca")
        figures: dict[str, float] = {}
        if "tessera" in names:
            tessera = FederatedServer(folder / "tessera", authority)
            await tessera.start()
            try:
                async with tessera.connected() as api:
                    device = await api.register("reader")
                    figures["tessera"] = await measure("tessera", tessera.pid, tessera.server_name, authority, device)
            finally:
                await tessera.stop()
        if "synapse" in names:
            synapse = SynapseServer(folder / "synapse", authority)
            synapse.start()
            try:
                async with synapse.connected() as api:
                    device = await api.register("reader")
                    figures["synapse"] = await measure("synapse", synapse.pid, synapse.server_name, authority, device)
            finally:
                synapse.stop()
    if len(figures) == 2:
        print(f"ratio: {figures['tessera'] / figures['synapse']:.1f}")


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1:] or ["tessera", "synapse"]))

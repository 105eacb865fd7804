"""A whole server without Kafka that is put back to an older backup, and clients that know more than it.

Nothing but their tokens can tell it (DESIGN section 2, 15). Spec: C-S API §Syncing.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from services.restored_command import begin_anew
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.ids import IdSource
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tests.conftest import run_sql
from tests.fixtures.whole_server import Device, WholeServer, running_whole_server

LONG_MS = 30_000


class Restorable:
    """A server of one database, with a backup of it."""

    def __init__(self, postgres: EmbeddedPostgres, dsn: str, folder: Path) -> None:
        self._postgres = postgres
        self._dsn = dsn
        self._name = dsn.partition("?")[0].rpartition("/")[2]
        self._folder = folder

    @asynccontextmanager
    async def running(self, *before: Device) -> AsyncIterator[tuple[WholeServer, list[Device]]]:
        """Run once; the server, and devices of a run before."""
        async with running_whole_server(self._dsn, self._folder, partitions=4) as server:
            yield server, [_again(server, device) for device in before]

    async def back_up(self) -> None:
        """Copy the database while the server is stopped."""
        await run_sql(self._postgres, f"CREATE DATABASE {self._name}_backup TEMPLATE {self._name}")

    async def restore(self) -> None:
        """Put the copy in its place."""
        await run_sql(self._postgres, f"DROP DATABASE {self._name} WITH (FORCE)")
        await run_sql(self._postgres, f"ALTER DATABASE {self._name}_backup RENAME TO {self._name}")


def _again(server: WholeServer, device: Device) -> Device:
    login = {"user_id": device.user_id, "device_id": device.device_id, "access_token": device.token}
    return Device(server.http, login)


def ahead(stream: str) -> float:
    """How many tokens were found to be ahead in a stream."""
    return REGISTRY.get_sample_value("tessera_sync_tokens_ahead_total", {"stream": stream}) or 0.0


def texts(section: dict[str, Any]) -> list[str]:
    """The messages of a room's timeline."""
    return [event["content"]["body"] for event in section["timeline"]["events"] if event["type"] == "m.room.message"]


async def test_rooms_of_a_partition_that_a_token_is_ahead_of_are_limited(
    postgres: EmbeddedPostgres, dsn: str, tmp_path: Path
) -> None:
    server = Restorable(postgres, dsn, tmp_path)
    async with server.running() as (running, _):
        alice, bob = await running.register("alice"), await running.register("bob")
        room_id = await alice.make_room(preset="public_chat")
        await bob.post(f"/join/{room_id}")
        await alice.send(room_id, "kept")
        await bob.sync()
    await server.back_up()
    async with server.running(alice, bob) as (_, (alice, bob)):
        for number in range(5):
            await alice.send(room_id, f"lost {number}")
        token = (await bob.sync())["next_batch"]
    await server.restore()
    async with server.running(alice, bob) as (_, (alice, bob)):
        counts = ahead("partition"), ahead("user")
        await alice.send(room_id, "new")
        answer = await bob.sync(token, timeout=LONG_MS)
        section = answer["rooms"]["join"][room_id]
        assert section["timeline"]["limited"]
        assert texts(section) == ["kept", "new"]
        assert (ahead("partition"), ahead("user")) == (counts[0] + 1, counts[1])
        again = await bob.sync(answer["next_batch"])
        assert room_id not in again.get("rooms", {}).get("join", {}), "told once"
        await alice.send(room_id, "and on")
        news = (await bob.sync(answer["next_batch"], timeout=LONG_MS))["rooms"]["join"][room_id]
        assert texts(news) == ["and on"]
        assert not news["timeline"]["limited"]
        assert ahead("partition") == counts[0] + 1


async def test_a_token_that_is_ahead_of_the_users_log_gets_all_rooms_invites_and_messages(
    postgres: EmbeddedPostgres, dsn: str, tmp_path: Path
) -> None:
    server = Restorable(postgres, dsn, tmp_path)
    async with server.running() as (running, _):
        alice, bob = await running.register("alice"), await running.register("bob")
        kept, quitted = [await alice.make_room(preset="public_chat") for _ in range(2)]
        await bob.post(f"/join/{kept}")
        await bob.post(f"/join/{quitted}")
        await bob.post(f"/rooms/{quitted}/leave")
        await alice.send(kept, "kept")
    await server.back_up()
    async with server.running(alice, bob) as (_, (alice, bob)):
        await bob.post(f"/join/{quitted}")
        lost = await alice.make_room(preset="public_chat")
        await bob.post(f"/join/{lost}")
        await bob.put(f"/user/{bob.user_id}/account_data/org.example.colour", {"colour": "lost"})
        for number in range(10):
            await _send_to_device(alice, bob, f"lost {number}")
        token = (await bob.sync())["next_batch"]
    await server.restore()
    async with server.running(alice, bob) as (_, (alice, bob)):
        counts = ahead("user")
        invited = await alice.make_room(invite=[bob.user_id])
        await _send_to_device(alice, bob, "new")
        answer = await bob.sync(token, timeout=LONG_MS)
        rooms = answer["rooms"]
        assert rooms["join"].keys() == {kept}
        assert rooms["join"][kept]["timeline"]["limited"]
        assert texts(rooms["join"][kept]) == ["kept"]
        assert rooms["invite"].keys() == {invited}
        assert rooms["leave"].keys() == {quitted}, "the client has it as joined"
        assert [one["content"]["text"] for one in answer["to_device"]["events"]] == ["new"]
        assert ahead("user") == counts + 1
        again = await bob.sync(answer["next_batch"])
        assert "rooms" not in again
        assert "to_device" not in again
        assert ahead("user") == counts + 1


async def _send_to_device(sender: Device, receiver: Device, text: str) -> None:
    messages = {receiver.user_id: {receiver.device_id: {"text": text}}}
    await sender.put(f"/sendToDevice/org.example.note/{text.replace(' ', '-')}", {"messages": messages})


async def test_key_changes_since_a_token_that_is_ahead_are_those_of_everybody_there(
    postgres: EmbeddedPostgres, dsn: str, tmp_path: Path
) -> None:
    server = Restorable(postgres, dsn, tmp_path)
    async with server.running() as (running, _):
        alice, bob, carol = [await running.register(name) for name in ("alice", "bob", "carol")]
        room_id = await alice.make_room(preset="public_chat")
        await bob.post(f"/join/{room_id}")
        await carol.make_room(preset="public_chat")
    await server.back_up()
    async with server.running(alice, bob) as (_, (alice, bob)):
        await alice.send(room_id, "lost")
        ahead_in_room = (await alice.sync())["next_batch"]
        await bob.post("/keys/upload", _device_keys(bob))
        await alice.put(f"/user/{alice.user_id}/account_data/org.example.colour", {"colour": "lost"})
        ahead_in_all = (await alice.sync())["next_batch"]
    await server.restore()
    async with server.running(alice) as (_, (alice,)):
        now = (await alice.sync())["next_batch"]
        assert await _key_changes(alice, now, now) == (set(), set())
        assert await _key_changes(alice, ahead_in_room, now) == ({bob.user_id}, set())
        assert await _key_changes(alice, ahead_in_all, now) == ({alice.user_id, bob.user_id}, set())


def _device_keys(device: Device) -> dict[str, Any]:
    keys = {
        "user_id": device.user_id,
        "device_id": device.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {f"curve25519:{device.device_id}": "A" * 43, f"ed25519:{device.device_id}": "B" * 43},
        "signatures": {device.user_id: {f"ed25519:{device.device_id}": "C" * 86}},
    }
    return {"device_keys": keys}


async def _key_changes(device: Device, start: str, end: str) -> tuple[set[str], set[str]]:
    answer = await device.get("/keys/changes", **{"from": start, "to": end})
    return set(answer["changed"]), set(answer["left"])


async def test_a_restore_that_is_told_makes_all_rooms_limited_even_for_who_comes_late(
    postgres: EmbeddedPostgres, dsn: str, tmp_path: Path
) -> None:
    server = Restorable(postgres, dsn, tmp_path)
    async with server.running() as (running, _):
        alice, bob = await running.register("alice"), await running.register("bob")
        room_id = await alice.make_room(preset="public_chat")
        await bob.post(f"/join/{room_id}")
        await alice.send(room_id, "kept")
        await bob.sync()
    await server.back_up()
    async with server.running(alice, bob) as (_, (alice, bob)):
        await alice.send(room_id, "lost")
        token = (await bob.sync())["next_batch"]
    await server.restore()
    database = await Database.connect(dsn)
    assert await begin_anew(RoomShards({"main": database}, dict.fromkeys(range(4), "main"), 4), IdSource()) == 4
    await database.close()
    async with server.running(alice, bob) as (_, (alice, bob)):
        for number in range(5):
            await alice.send(room_id, f"new {number}")
        section = (await bob.sync(token, timeout=LONG_MS))["rooms"]["join"][room_id]
        assert section["timeline"]["limited"]
        assert texts(section) == ["kept", *(f"new {number}" for number in range(5))]

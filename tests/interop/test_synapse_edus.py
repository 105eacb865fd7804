"""Tessera and a real Synapse: what is not events, in both directions, and outages of either."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.synapse import SynapseServer
from tests.fixtures.whole_server import Device, ServerApi

SECONDS = 40


async def eventually(look: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What `look` finds at last."""
    for _ in range(SECONDS * 4):
        found = await look()
        if found:
            return found
        await asyncio.sleep(0.25)
    raise AssertionError(f"not in {SECONDS} s: {what}")


class Watch:
    """A client that syncs: everything that it has been told."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.since: str | None = None
        self.ephemeral: list[dict[str, Any]] = []
        self.presence: list[dict[str, Any]] = []
        self.to_device: list[dict[str, Any]] = []
        self.changed: set[str] = set()
        self.texts: list[str] = []

    async def look(self) -> None:
        answer = await self.device.sync(self.since, timeout=200)
        self.since = answer["next_batch"]
        self.presence += answer.get("presence", {}).get("events", [])
        self.to_device += answer.get("to_device", {}).get("events", [])
        self.changed |= set(answer.get("device_lists", {}).get("changed", []))
        for room in answer.get("rooms", {}).get("join", {}).values():
            self.ephemeral += room.get("ephemeral", {}).get("events", [])
            self.texts += [e["content"]["body"] for e in room["timeline"]["events"] if "body" in e["content"]]

    async def until(self, holds: Callable[[], Any], what: str) -> Any:
        async def look() -> Any:
            await self.look()
            return holds()

        return await eventually(look, f"{what}; has {self.ephemeral[-3:]} {self.presence[-3:]} {self.changed}")

    def typists(self) -> list[str] | None:
        """Who types, by the newest list."""
        typing = [event for event in self.ephemeral if event["type"] == "m.typing"]
        return typing[-1]["content"]["user_ids"] if typing else None

    def receipts(self) -> set[tuple[str, str]]:
        """(event, user) of all public receipts."""
        return {
            (event_id, user_id)
            for event in self.ephemeral
            if event["type"] == "m.receipt"
            for event_id, kinds in event["content"].items()
            for user_id in kinds.get("m.read", {})
        }


def device_keys(device: Device) -> dict[str, Any]:
    """Keys that nobody checks."""
    name = f"ed25519:{device.device_id}"
    return {
        "user_id": device.user_id,
        "device_id": device.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {name: "a" * 43, f"curve25519:{device.device_id}": "b" * 43},
        "signatures": {device.user_id: {name: "c" * 86}},
    }


async def shared_room(host: Device, guest: Device) -> str:
    """A room of one server that the other's user has joined."""
    room_id = await host.make_room(preset="private_chat", invite=[guest.user_id])

    async def join() -> bool:
        status, _ = await guest.call("POST", f"/join/{quote(room_id)}", {}, server_name=host.user_id.split(":", 1)[1])
        return bool(status == 200)

    await eventually(join, "a join")
    return room_id


@pytest.fixture(params=["ours", "theirs"])
def ours_hosts(request: pytest.FixtureRequest) -> bool:
    """Whose room it is."""
    return bool(request.param == "ours")


async def test_edus_reach_the_other_server(
    tessera_server: FederatedServer, synapse_server: SynapseServer, ours_hosts: bool, unique: str
) -> None:
    async with tessera_server.connected() as ours, synapse_server.connected() as theirs:
        alice, bob = await ours.register(f"alice{unique}"), await theirs.register(f"bob{unique}")
        room_id = await (shared_room(alice, bob) if ours_hosts else shared_room(bob, alice))
        at_ours, at_theirs = Watch(alice), Watch(bob)
        pairs = ((alice, bob, at_theirs), (bob, alice, at_ours))
        for sender, _, watch in pairs:
            text = f"from {sender.user_id}"
            event_id = await sender.send(room_id, text)
            await watch.until(lambda w=watch, t=text: t in w.texts, "a message")
            reader = watch.device
            await reader.post(f"/rooms/{room_id}/receipt/m.read/{quote(event_id)}")
            heard = at_ours if watch is at_theirs else at_theirs
            await heard.until(
                lambda h=heard, e=event_id, r=reader: (e, r.user_id) in h.receipts(), f"a receipt of {reader.user_id}"
            )
        for sender, _, watch in pairs:
            path = f"/rooms/{room_id}/typing/{quote(sender.user_id)}"
            await sender.put(path, {"typing": True, "timeout": 30_000})
            await watch.until(lambda w=watch, s=sender: w.typists() == [s.user_id], "typing")
            await sender.put(path, {"typing": False})
            await watch.until(lambda w=watch: w.typists() == [], "no typing")
        for sender, _, watch in pairs:
            status = f"I am {sender.user_id}"
            await sender.put(f"/presence/{quote(sender.user_id)}/status", {"presence": "online", "status_msg": status})
            await watch.until(
                lambda w=watch, t=status: t in [one["content"].get("status_msg") for one in w.presence], "presence"
            )


async def test_keys_and_messages_of_devices_go_both_ways(
    tessera_server: FederatedServer, synapse_server: SynapseServer, ours_hosts: bool, unique: str
) -> None:
    async with tessera_server.connected() as ours, synapse_server.connected() as theirs:
        alice, bob = await ours.register(f"alice{unique}"), await theirs.register(f"bob{unique}")
        await (shared_room(alice, bob) if ours_hosts else shared_room(bob, alice))
        watches = {alice.user_id: Watch(alice), bob.user_id: Watch(bob)}
        for watch in watches.values():
            await watch.look()
        for sender, other in ((alice, bob), (bob, alice)):
            watch = watches[other.user_id]
            watch.changed.clear()
            one_time = {"signed_curve25519:AAAA": {"key": f"key of {sender.user_id}"}}
            await sender.post("/keys/upload", {"device_keys": device_keys(sender), "one_time_keys": one_time})
            await watch.until(lambda w=watch, s=sender: s.user_id in w.changed, "a changed device list")

            async def known(asker: Device = other, owner: Device = sender) -> Any:
                found = await asker.post("/keys/query", {"device_keys": {owner.user_id: []}})
                return found["device_keys"].get(owner.user_id, {}).get(owner.device_id)

            keys = await eventually(known, "device keys")
            assert keys["keys"] == device_keys(sender)["keys"]
            asked = {sender.user_id: {sender.device_id: "signed_curve25519"}}
            claimed = await other.post("/keys/claim", {"one_time_keys": asked})
            assert claimed["one_time_keys"][sender.user_id][sender.device_id] == one_time, claimed
            await sender.put(
                f"/sendToDevice/m.secret/{unique}", {"messages": {other.user_id: {"*": {"from": sender.user_id}}}}
            )
            message = {"type": "m.secret", "sender": sender.user_id, "content": {"from": sender.user_id}}
            await watch.until(lambda w=watch, m=message: m in w.to_device, "a message to the device")
        # A second device becomes known without anybody asking the other server again.
        second = await ours.login(alice.user_id)
        await second.post("/keys/upload", {"device_keys": device_keys(second)})

        async def has_second() -> bool:
            found = await bob.post("/keys/query", {"device_keys": {alice.user_id: []}})
            return second.device_id in found["device_keys"][alice.user_id]

        await eventually(has_second, "the second device")


async def test_profiles_aliases_and_directories_are_asked_for(
    tessera_server: FederatedServer, synapse_server: SynapseServer, unique: str
) -> None:
    async with tessera_server.connected() as ours, synapse_server.connected() as theirs:
        alice, bob = await ours.register(f"alice{unique}"), await theirs.register(f"bob{unique}")
        for owner, asker, server in (
            (alice, bob, tessera_server.server_name),
            (bob, alice, synapse_server.server_name),
        ):
            name = f"Name of {owner.user_id}"
            await owner.put(f"/profile/{quote(owner.user_id)}/displayname", {"displayname": name})
            assert (await asker.get(f"/profile/{quote(owner.user_id)}"))["displayname"] == name
            assert await asker.get(f"/profile/{quote(owner.user_id)}/displayname") == {"displayname": name}
            assert await asker.refused("GET", f"/profile/{quote('@nobody' + unique + ':' + server)}") == (
                404,
                "M_NOT_FOUND",
            )
            local = f"room{unique}"
            room_id = await owner.make_room(
                preset="public_chat", room_alias_name=local, visibility="public", name=f"Open {unique}"
            )
            found = await asker.get(f"/directory/room/{quote(f'#{local}:{server}', safe='')}")
            assert found["room_id"] == room_id
            assert server in found["servers"]
            page = await asker.get("/publicRooms", server=server)
            assert room_id in [one["room_id"] for one in page["chunk"]]
            status, page = await asker.call(
                "POST", "/publicRooms", {"filter": {"generic_search_term": unique}}, server=server
            )
            assert (status, [one["room_id"] for one in page["chunk"]]) == (200, [room_id])


async def test_a_server_that_was_away_is_caught_up(
    tessera_server: FederatedServer, synapse_server: SynapseServer, unique: str
) -> None:
    async with tessera_server.connected() as ours:
        alice = await ours.register(f"alice{unique}")
        async with synapse_server.connected() as theirs:
            bob = await theirs.register(f"bob{unique}")
            room_id = await shared_room(alice, bob)
            watch = Watch(bob)
            await alice.send(room_id, "before")
            await watch.until(lambda: "before" in watch.texts, "a message")
        synapse_server.stop()
        for number in range(30):
            await alice.send(room_id, f"while away {number}")
        await alice.put(f"/sendToDevice/m.secret/{unique}", {"messages": {bob.user_id: {"*": {"n": 1}}}})
        synapse_server.start()
        async with synapse_server.connected() as theirs:
            back = Device(theirs.http, {"user_id": bob.user_id, "device_id": bob.device_id, "access_token": bob.token})
            watch = Watch(back)
            # Whoever comes back shows life, and is sent to at once.
            await back.send(room_id, "back")
            await watch.until(lambda: "while away 29" in watch.texts, f"the newest message; has {watch.texts}")
            await watch.until(lambda: [e["content"] for e in watch.to_device] == [{"n": 1}], "the message")
            assert isinstance(theirs, ServerApi)

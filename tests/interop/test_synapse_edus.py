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


async def test_media_are_fetched_from_each_other(
    tessera_server: FederatedServer, synapse_server: SynapseServer, unique: str
) -> None:
    async with tessera_server.connected() as ours, synapse_server.connected() as theirs:
        alice, bob = await ours.register(f"alice{unique}"), await theirs.register(f"bob{unique}")
        for owner, asker, server in ((alice, bob, ours), (bob, alice, theirs)):
            content = f"bytes of {owner.user_id}\r\n".encode() * 20_000
            answer = await server.http.post(
                "/_matrix/media/v3/upload?filename=notes.txt",
                content=content,
                headers={"Authorization": f"Bearer {owner.token}", "Content-Type": "text/plain"},
            )
            uri = answer.json()["content_uri"].removeprefix("mxc://")
            other = theirs if server is ours else ours
            for _ in range(2):
                found = await other.http.get(
                    f"/_matrix/client/v1/media/download/{uri}", headers={"Authorization": f"Bearer {asker.token}"}
                )
                assert (found.status_code, found.content == content) == (200, True), found.text[:300]
            assert found.headers["content-type"].startswith("text/plain")
            assert "notes.txt" in found.headers["content-disposition"]
            missing = await other.http.get(
                f"/_matrix/client/v1/media/download/{uri.partition('/')[0]}/none{unique}",
                headers={"Authorization": f"Bearer {asker.token}"},
            )
            assert missing.status_code in (404, 502)

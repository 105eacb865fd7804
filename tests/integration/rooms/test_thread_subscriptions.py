"""Following threads and leaving them. Spec: MSC4306, MSC4308."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.whole_server import Device, WholeServer, running_whole_server

CHANGES = "/io.element.msc4308/thread_subscriptions"


@dataclass
class Talk:
    """Alice's room with Bob, and two messages of hers."""

    server: WholeServer
    alice: Device
    bob: Device
    room: str
    roots: list[str]

    async def call(self, device: Device, method: str, body: Any = None, *, root: int = 0) -> tuple[int, Any]:
        path = f"/io.element.msc4306/rooms/{quote(self.room)}/thread/{quote(self.roots[root])}/subscription"
        status, answer = await device.call(method, path, body, version="unstable")
        return status, answer.get("errcode", answer)

    async def changes(self, device: Device, **query: Any) -> Any:
        status, answer = await device.call("GET", CHANGES, version="unstable", **query)
        assert status == 200, answer
        return answer

    async def reply(self, root: int = 0) -> str:
        """Alice speaks in a thread."""
        relation = {"rel_type": "m.thread", "event_id": self.roots[root]}
        content = {"msgtype": "m.text", "body": "there", "m.relates_to": relation}
        path = f"/rooms/{quote(self.room)}/send/m.room.message/{len(self._sent)}"
        self._sent.append((await self.alice.put(path, content))["event_id"])
        return self._sent[-1]

    def __post_init__(self) -> None:
        self._sent: list[str] = []


@pytest.fixture
async def talk(dsn: str, tmp_path: Path) -> AsyncIterator[Talk]:
    async with running_whole_server(dsn, tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room = await alice.make_room(preset="public_chat")
        await bob.post(f"/rooms/{quote(room)}/join")
        yield Talk(server, alice, bob, room, [await alice.send(room, "one"), await alice.send(room, "two")])


async def test_a_thread_is_followed_and_left(talk: Talk) -> None:
    assert await talk.call(talk.bob, "GET") == (404, "M_NOT_FOUND")
    assert await talk.call(talk.bob, "PUT") == (200, {})
    assert await talk.call(talk.bob, "GET") == (200, {"automatic": False})
    assert await talk.call(talk.bob, "DELETE") == (200, {})
    assert await talk.call(talk.bob, "DELETE") == (200, {})
    assert await talk.call(talk.bob, "GET") == (404, "M_NOT_FOUND")
    assert await talk.call(talk.alice, "GET") == (404, "M_NOT_FOUND")


async def test_a_client_follows_for_a_reason_and_not_against_the_user(talk: Talk) -> None:
    mention = await talk.reply()
    assert await talk.call(talk.bob, "PUT", {"automatic": mention}) == (200, {})
    assert await talk.call(talk.bob, "GET") == (200, {"automatic": True})
    assert await talk.call(talk.bob, "PUT") == (200, {})
    assert await talk.call(talk.bob, "PUT", {"automatic": mention}) == (200, {})
    assert await talk.call(talk.bob, "GET") == (200, {"automatic": False})
    assert await talk.call(talk.bob, "DELETE") == (200, {})
    conflict = (409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
    assert await talk.call(talk.bob, "PUT", {"automatic": mention}) == conflict
    assert await talk.call(talk.bob, "PUT", {"automatic": await talk.reply()}) == (200, {})
    elsewhere = await talk.reply(root=1)
    assert await talk.call(talk.bob, "PUT", {"automatic": elsewhere}) == (400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")


async def test_who_may_not(talk: Talk) -> None:
    carol = await talk.server.register("carol")
    for method in ("GET", "PUT", "DELETE"):
        assert await talk.call(carol, method) == (403, "M_FORBIDDEN")
    talk.roots[0] = "$unknown"
    assert await talk.call(talk.bob, "PUT") == (404, "M_NOT_FOUND")
    for body in ({"automatic": 1}, {"automatic": None}):
        assert await talk.call(talk.bob, "PUT", body, root=1) == (400, "M_BAD_JSON")
    assert await talk.call(talk.bob, "PUT", {"automatic": "none"}, root=1) == (400, "M_INVALID_PARAM")
    assert await talk.call(talk.bob, "PUT", {"automatic": "$none"}, root=1) == (404, "M_NOT_FOUND")


async def test_what_has_changed_is_listed_the_newest_first(talk: Talk) -> None:
    assert await talk.changes(talk.bob) == {"subscribed": {}, "unsubscribed": {}}
    await talk.call(talk.bob, "PUT", root=0)
    await talk.call(talk.bob, "PUT", {"automatic": await talk.reply(root=1)}, root=1)
    await talk.call(talk.bob, "DELETE", root=0)
    first = await talk.changes(talk.bob, limit=1)
    left = first["unsubscribed"][talk.room][talk.roots[0]]
    assert (first["subscribed"], list(left)) == ({}, ["bump_stamp"])
    then = await talk.changes(talk.bob, limit=1, **{"from": first["end"]})
    followed = then["subscribed"][talk.room][talk.roots[1]]
    assert (then["unsubscribed"], followed["automatic"]) == ({}, True)
    assert "end" not in then
    assert followed["bump_stamp"] < left["bump_stamp"]
    since = await talk.changes(talk.bob, to=str(followed["bump_stamp"]))
    assert (since["subscribed"], list(since["unsubscribed"])) == ({}, [talk.room])
    status, answer = await talk.bob.call("GET", CHANGES, version="unstable", **{"from": "x"})
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")

"""How many statements the heavy endpoints take: the same for a small server as for a larger one.

What a request costs may grow with its answer; what it asks PostgreSQL may not: a query for each room, member or event
is the usual way in which a server that was quick in tests becomes slow in an organisation.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.reference_pages import HOW, is_being_written, read_page, write_page
from tests.fixtures.whole_server import Device, WholeServer, running_whole_server

SMALL, LARGE = 4, 24

PAGE = "query-counts.md"
_INTRODUCTION = f"""# Statements of the heavy endpoints

What a request costs may grow with its answer; what it asks PostgreSQL may not. A test
(`tests/integration/test_query_counts.py`; the page is {HOW}) asks a server with {SMALL} members of a room, rooms of
a space, public rooms, answers, reactions and people, and the same server with {LARGE} of each.

"""
# The most statements that each takes, of whatever size.
MOST = {
    "initial sync": 12,
    "incremental sync": 18,
    "members": 4,
    "messages": 9,
    "search": 9,
    "hierarchy": 6,
    "publicRooms": 3,
    "user directory": 3,
    "keys/query": 4,
    "context": 9,
    "relations": 7,
    "summary": 6,
}


@dataclass
class Grown:
    """A server that grows: Alice, a room where things pile up, a space, and her friends."""

    server: WholeServer
    alice: Device
    room: str
    space: str
    root: str
    since: str = ""
    friends: list[Device] = field(default_factory=list)

    async def grow(self, count: int) -> None:
        """Up to so many friends in the room, rooms in the space, messages, answers and reactions."""
        for number in range(len(self.friends), count):
            friend = await self.server.register(f"friend{number}")
            self.friends.append(friend)
            await friend.post(f"/rooms/{quote(self.room)}/join")
            await friend.post("/keys/upload", {"device_keys": _device_keys(friend)})
            await friend.send(self.room, f"hello from number {number}")
            content = {"m.relates_to": {"rel_type": "m.annotation", "event_id": self.root, "key": f"+{number}"}}
            await friend.put(f"/rooms/{quote(self.room)}/send/m.reaction/r{number}", content)
            more = {"preset": "public_chat", "visibility": "public", "name": f"hello room {number}"}
            room = await self.alice.make_room(**more)
            await friend.post(f"/rooms/{quote(room)}/join")
            await friend.send(room, f"hello in room {number}")
            child = {"via": ["chat.example"]}
            await self.alice.put(f"/rooms/{quote(self.space)}/state/m.space.child/{quote(room)}", child)

    async def statements(self, name: str) -> int:
        """How many statements a request took that was asked before."""
        for _ in range(2):
            async with self.server.accounts.counting_here() as count:
                status, answer = await self._ask(name)
            assert status == 200, (name, answer)
            assert _size_of(name, answer) >= min(len(self.friends), 10), (name, answer)
        return count.statements

    async def _ask(self, name: str) -> Any:
        room, space, alice = quote(self.room), quote(self.space), self.alice
        match name:
            case "initial sync":
                return await alice.call("GET", "/sync", timeout=0)
            case "incremental sync":
                return await alice.call("GET", "/sync", timeout=0, since=self.since)
            case "members":
                return await alice.call("GET", f"/rooms/{room}/members")
            case "messages":
                return await alice.call("GET", f"/rooms/{room}/messages", dir="b", limit=100)
            case "search":
                term = {"search_term": "hello", "event_context": {"before_limit": 1, "after_limit": 1}}
                return await alice.call("POST", "/search", {"search_categories": {"room_events": term}})
            case "hierarchy":
                return await alice.call("GET", f"/rooms/{space}/hierarchy", version="v1", limit=50)
            case "publicRooms":
                return await alice.call("POST", "/publicRooms", {"limit": 50})
            case "user directory":
                return await alice.call("POST", "/user_directory/search", {"search_term": "friend", "limit": 50})
            case "keys/query":
                return await alice.call("POST", "/keys/query", {"device_keys": {f.user_id: [] for f in self.friends}})
            case "context":
                return await alice.call("GET", f"/rooms/{room}/context/{quote(self.root)}", limit=100)
            case "relations":
                return await alice.call("GET", f"/rooms/{room}/relations/{quote(self.root)}", version="v1", limit=100)
            case "summary":
                return await alice.call("GET", f"/room_summary/{room}", version="v1")
        raise AssertionError(name)


def _size_of(name: str, answer: Any) -> int:
    """How much an answer holds of what the server grew by."""
    match name:
        case "initial sync" | "incremental sync":
            return len(answer["rooms"]["join"])
        case "members" | "messages" | "publicRooms" | "relations":
            return len(answer["chunk"])
        case "search":
            return len(answer["search_categories"]["room_events"]["results"])
        case "hierarchy":
            return len(answer["rooms"])
        case "user directory":
            return len(answer["results"])
        case "keys/query":
            return len(answer["device_keys"])
        case "context":
            return len(answer["events_after"])
    return int(answer["num_joined_members"])


def _device_keys(device: Device) -> dict[str, Any]:
    key = {f"ed25519:{device.device_id}": "A" * 43, f"curve25519:{device.device_id}": "A" * 43}
    return {
        "user_id": device.user_id,
        "device_id": device.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": key,
        "signatures": {device.user_id: {f"ed25519:{device.device_id}": "A" * 86}},
    }


@pytest.fixture
async def grown(dsn: str, tmp_path: Path) -> AsyncIterator[Grown]:
    async with running_whole_server(dsn, tmp_path) as server:
        alice = await server.register("alice")
        room = await alice.make_room(preset="public_chat", visibility="public", name="hello")
        space = await alice.make_room(preset="public_chat", creation_content={"type": "m.space"})
        root = await alice.send(room, "hello, all")
        since = (await alice.sync())["next_batch"]
        yield Grown(server, alice, room, space, root, since)


@pytest.mark.timeout(180)
async def test_the_number_of_statements_does_not_grow(grown: Grown) -> None:
    counts: dict[str, list[int]] = {}
    for size in (SMALL, LARGE):
        await grown.grow(size)
        for name in MOST:
            counts.setdefault(name, []).append(await grown.statements(name))
    lines = [f"| {name} | {small} | {large} | {MOST[name]} |" for name, (small, large) in counts.items()]
    table = "\n".join([f"| endpoint | with {SMALL} | with {LARGE} | most |", "|---|--:|--:|--:|", *lines])
    print(table)
    if is_being_written():
        await asyncio.to_thread(write_page, PAGE, f"{_INTRODUCTION}{table}\n")
    told = _counts_of(await asyncio.to_thread(read_page, PAGE))
    current = {name: (max(pair), MOST[name]) for name, pair in counts.items()}
    assert told.keys() == current.keys(), f"docs/{PAGE} is {HOW}"
    assert all(current[name][0] <= told[name][0] and current[name][1] == told[name][1] for name in told), table
    grew = {name: pair for name, pair in counts.items() if pair[1] > pair[0]}
    assert not grew, table
    assert not {name for name, pair in counts.items() if max(pair) > MOST[name]}, table


def _counts_of(page: str) -> dict[str, tuple[int, int]]:
    """What a page says of each endpoint: (the larger server's statements, the most)."""
    rows = [[field.strip() for field in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {name: (int(large), int(most)) for name, _small, large, most in rows[2:]}

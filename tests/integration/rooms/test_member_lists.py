"""The lists of members that are kept for large rooms say what the tables say, whatever happened since they were made.

Spec: C-S API GET /rooms/{roomId}/members, /joined_members.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from services.gateway import member_lists, member_stretches, room_members
from services.gateway.member_lists import MemberLists
from tests.fixtures.whole_server import Device, WholeServer, running_whole_server

NAMES = [f"user{number}" for number in range(9)]
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"membership": "join"},
    {"not_membership": "leave"},
    {"membership": "leave", "not_membership": "join"},
)


@dataclass
class Hall:
    """A room of Alice's with some people in it, whose list is kept in stretches of two."""

    server: WholeServer
    alice: Device
    people: list[Device]
    room_id: str
    monkeypatch: pytest.MonkeyPatch

    @property
    def path(self) -> str:
        return f"/rooms/{quote(self.room_id)}"

    @contextmanager
    def nothing_kept(self) -> Iterator[None]:
        with self.monkeypatch.context() as patch:
            patch.setattr(room_members, "KEPT_FROM", 1_000)
            yield

    async def list(self, reader: Device, **query: str) -> list[dict[str, Any]]:
        chunk: list[dict[str, Any]] = (await reader.get(f"{self.path}/members", **query))["chunk"]
        assert all(event["unsigned"].pop("age") >= 0 for event in chunk)
        return sorted(chunk, key=lambda event: event["state_key"])

    async def check(self) -> None:
        """What is kept is what is read anew."""
        for reader in (self.alice, self.people[4]):
            for query in FILTERS:
                kept = await self.list(reader, **query)
                with self.nothing_kept():
                    assert kept == await self.list(reader, **query)
        joined = await self.alice.get(f"{self.path}/joined_members")
        with self.nothing_kept():
            assert joined == await self.alice.get(f"{self.path}/joined_members")

    async def event_of(self, user_id: str) -> dict[str, Any]:
        return next(event for event in await self.list(self.alice) if event["state_key"] == user_id)

    async def statements(self) -> int:
        async with self.server.accounts.counting_here() as count:
            await self.alice.get(f"{self.path}/members")
        return count.statements


@pytest.fixture
async def hall(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hall]:
    monkeypatch.setattr(room_members, "KEPT_FROM", 1)
    monkeypatch.setattr(room_members, "MAX_WHOLE", 700)
    for module in (member_lists, member_stretches):
        monkeypatch.setattr(module, "STRETCH", 2)
    async with running_whole_server(dsn, tmp_path) as server:
        alice = await server.register("alice")
        people = [await server.register(name) for name in NAMES]
        room_id = await alice.make_room(preset="public_chat")
        for device in people[::2]:
            await device.post(f"/rooms/{quote(room_id)}/join")
        yield Hall(server, alice, people, room_id, monkeypatch)


async def test_a_kept_list_follows_what_happens(hall: Hall) -> None:
    await hall.check()
    assert len(await hall.list(hall.alice)) == 6
    for device in hall.people[1::2]:
        await device.post(f"{hall.path}/join")
        await hall.check()
    await hall.people[3].post(f"{hall.path}/leave")
    await hall.alice.post(f"{hall.path}/ban", {"user_id": hall.people[0].user_id, "reason": "100% noise"})
    await hall.check()
    assert (await hall.event_of(hall.people[0].user_id))["content"]["reason"] == "100% noise"
    await hall.people[2].put(f"/profile/{hall.people[2].user_id}/displayname", {"displayname": "%d %b %%"})
    await hall.alice.send(hall.room_id, "anything")
    assert (await hall.alice.get(f"{hall.path}/members"))["chunk"]
    await hall.check()
    assert len(await hall.list(hall.alice)) == len(NAMES) + 1


async def test_a_redacted_member_event_is_shown_so(hall: Hall) -> None:
    content = {"membership": "join", "displayname": "something rude"}
    device = hall.people[6]
    await device.put(f"{hall.path}/state/m.room.member/{device.user_id}", content)
    event = await hall.event_of(device.user_id)
    assert event["content"] == content
    await hall.alice.put(f"{hall.path}/redact/{quote(event['event_id'])}/r1", {"reason": "rude"})
    shown = await hall.event_of(device.user_id)
    assert shown["content"] == {"membership": "join"}
    assert shown["unsigned"]["redacted_because"]["content"]["reason"] == "rude"
    await hall.check()
    # Its successor shows it as what was there before.
    await device.put(f"{hall.path}/state/m.room.member/{device.user_id}", {"membership": "join", "displayname": "nice"})
    assert (await hall.event_of(device.user_id))["unsigned"]["prev_content"] == {"membership": "join"}
    await hall.check()


async def test_an_earlier_point_is_not_answered_with_what_came_later(hall: Hall) -> None:
    before = (await hall.alice.sync())["next_batch"]
    then = await hall.list(hall.alice)
    await hall.alice.send(hall.room_id, "anything")
    assert await hall.list(hall.alice, at=before) == then
    await hall.people[1].post(f"{hall.path}/join")
    assert await hall.list(hall.alice, at=before) == then
    await hall.people[2].post(f"{hall.path}/leave")
    after_leave = await hall.list(hall.people[2])
    await hall.people[3].post(f"{hall.path}/join")
    assert await hall.list(hall.people[2]) == after_leave
    assert len(await hall.list(hall.alice)) == len(after_leave) + 1


async def test_only_what_changed_is_read_again(hall: Hall) -> None:
    await hall.list(hall.alice)
    assert await hall.statements() == 2  # the room, and what changed
    await hall.people[1].post(f"{hall.path}/join")
    assert await hall.statements() == 3
    assert await hall.statements() == 2


async def test_who_asks_together_gets_the_same(hall: Hall) -> None:
    answers = await asyncio.gather(*(hall.list(device) for device in (hall.alice, *hall.people[::2])))
    assert len({tuple(event["event_id"] for event in answer) for answer in answers}) == 1


async def test_too_many_bytes_are_not_kept(hall: Hall) -> None:
    for limits in ({"max_room_bytes": 1_000}, {"max_bytes": 1_000}):
        lists = MemberLists(**limits)
        hall.monkeypatch.setattr("services.gateway.dependencies.GatewayDeps.member_lists", lists, raising=False)
        await hall.check()
        assert await hall.statements() > 4

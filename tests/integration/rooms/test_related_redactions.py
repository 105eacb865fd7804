"""Redacting an event with what relates to it. Spec: MSC3912."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.whole_server import Device, WholeServer, running_whole_server

WITH = "org.matrix.msc3912.with_relations"


@pytest.fixture
async def server(dsn: str, tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with running_whole_server(dsn, tmp_path) as running:
        yield running


async def relate(device: Device, room: str, target: str, rel_type: str, txn_id: str) -> str:
    content = {"msgtype": "m.text", "body": rel_type, "m.relates_to": {"rel_type": rel_type, "event_id": target}}
    event_id: str = (await device.put(f"/rooms/{quote(room)}/send/m.room.message/{txn_id}", content))["event_id"]
    return event_id


async def redact(device: Device, room: str, target: str, txn_id: str, body: dict[str, Any]) -> Any:
    return await device.put(f"/rooms/{quote(room)}/redact/{quote(target)}/{txn_id}", body)


async def redacted(device: Device, room: str, *event_ids: str) -> list[bool]:
    events = [await device.get(f"/rooms/{quote(room)}/event/{quote(event_id)}") for event_id in event_ids]
    return [event["content"] == {} for event in events]


async def test_it_takes_along_what_the_user_may_redact(server: WholeServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room = await alice.make_room(preset="public_chat")
    await bob.post(f"/rooms/{quote(room)}/join")
    target = await bob.send(room, "where I am")
    own = await relate(bob, room, target, "m.reference", "1")
    others = await relate(alice, room, target, "m.reference", "2")
    answer = await relate(bob, room, target, "m.thread", "3")
    first = await redact(bob, room, target, "r", {WITH: ["m.reference"]})
    assert await redacted(alice, room, target, own, others, answer) == [True, True, False, False]
    assert await redact(bob, room, target, "r", {WITH: ["m.reference"]}) == first
    # Who may redact everybody takes all along.
    await redact(alice, room, target, "a", {WITH: ["*"], "reason": "tidy"})
    assert await redacted(alice, room, others, answer) == [True, True]
    shown = await alice.get(f"/rooms/{quote(room)}/event/{quote(answer)}")
    assert shown["unsigned"]["redacted_because"]["content"]["reason"] == "tidy"


async def test_without_relations_it_takes_none(server: WholeServer) -> None:
    alice = await server.register("alice")
    room = await alice.make_room()
    target = await alice.send(room, "one")
    answer = await relate(alice, room, target, "m.thread", "1")
    await redact(alice, room, target, "r", {})
    assert await redacted(alice, room, target, answer) == [True, False]
    path = f"/rooms/{quote(room)}/redact/{quote(answer)}/w"
    assert await alice.refused("PUT", path, {WITH: "m.thread"}) == (400, "M_BAD_JSON")
    assert await alice.refused("PUT", path, {WITH: ["a"] * 21}) == (400, "M_INVALID_PARAM")
    assert await redacted(alice, room, answer) == [False]

"""What clients meet in rooms in their first week, against a whole server. Spec: C-S API §Rooms."""

import asyncio
from typing import Any

import asyncpg
import orjson
import pytest

from tests.fixtures.whole_server import Device, Talk, WholeServer

MAX_EVENT_BYTES = 65_536


async def timeline(device: Device, room_id: str) -> list[dict[str, Any]]:
    chunk: list[dict[str, Any]] = (await device.get(f"/rooms/{room_id}/messages", dir="f", limit=100))["chunk"]
    return chunk


async def test_the_limit_of_an_event_counts_hashes_and_signatures(alice: Device, dsn: str) -> None:
    room_id = await alice.make_room(room_version="11")
    path = f"/rooms/{room_id}/send/m.room.message/"
    # How much the server adds is its own affair: find the largest body that fits.
    fits, too_large = 60_000, MAX_EVENT_BYTES
    await alice.put(f"{path}fits", {"body": "x" * fits})
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        status, reply = await alice.call("PUT", f"{path}{middle}", {"body": "x" * middle})
        if status == 200:
            fits = middle
        else:
            assert (status, reply["errcode"]) == (413, "M_TOO_LARGE")
            too_large = middle
    connection = await asyncpg.connect(dsn)
    largest = await connection.fetchval("SELECT pdu FROM rooms.events ORDER BY length(pdu) DESC LIMIT 1")
    await connection.close()
    assert {"hashes", "signatures"} <= orjson.loads(largest).keys()
    # A digit more of the depth may have come in between.
    assert MAX_EVENT_BYTES - 4 <= len(largest) <= MAX_EVENT_BYTES


async def test_trusted_invitees_are_creators_and_the_creation_names_the_room(alice: Device, bob: Device) -> None:
    room_id = await alice.make_room(preset="trusted_private_chat", invite=[bob.user_id], room_version="12")
    create = (await timeline(alice, room_id))[0]
    assert create["type"] == "m.room.create"
    assert create["event_id"] == "$" + room_id.removeprefix("!")
    assert create["content"]["additional_creators"] == [bob.user_id]
    await bob.post(f"/join/{room_id}")
    await bob.put(f"/rooms/{room_id}/state/m.room.name", {"name": "ours"})


async def test_repetitions_make_no_events(talk: Talk) -> None:
    topic = f"/rooms/{talk.room_id}/state/m.room.topic"
    first = await talk.alice.put(topic, {"topic": "tea"})
    before = [event["event_id"] for event in await timeline(talk.alice, talk.room_id)]
    assert await talk.alice.put(topic, {"topic": "tea"}) == first
    assert await talk.bob.post(f"/rooms/{talk.room_id}/join") == {"room_id": talk.room_id}
    assert [event["event_id"] for event in await timeline(talk.alice, talk.room_id)] == before


async def test_the_same_request_many_times_at_once_is_one_event(talk: Talk, server: WholeServer) -> None:
    room = f"/rooms/{talk.room_id}"
    carol = await server.register("carol")
    await talk.alice.post(f"{room}/invite", {"user_id": carol.user_id})
    before = len(await timeline(talk.alice, talk.room_id))
    sent = await asyncio.gather(*(talk.alice.send(talk.room_id, "x", "once") for _ in range(5)))
    topic = f"{room}/state/m.room.topic"
    set_ = await asyncio.gather(*(talk.alice.put(topic, {"topic": "tea"}) for _ in range(5)))
    await asyncio.gather(*(carol.post(f"{room}/join") for _ in range(5)))
    assert len(set(sent)) == 1
    assert len({reply["event_id"] for reply in set_}) == 1
    assert len(await timeline(talk.alice, talk.room_id)) == before + 3


async def test_who_left_sees_the_room_as_of_the_leave(talk: Talk) -> None:
    room = f"/rooms/{talk.room_id}"
    await talk.alice.put(f"{room}/state/m.room.topic", {"topic": "then"})
    await talk.bob.post(f"{room}/leave")
    await talk.alice.put(f"{room}/state/m.room.topic", {"topic": "later"})
    await talk.alice.send(talk.room_id, "unheard")
    assert (await talk.bob.get(f"{room}/state/m.room.topic"))["topic"] == "then"
    state = {(event["type"], event["state_key"]): event for event in await talk.bob.get(f"{room}/state")}
    assert state["m.room.topic", ""]["content"] == {"topic": "then"}
    members = {
        event["state_key"]: event["content"]["membership"] for event in (await talk.bob.get(f"{room}/members"))["chunk"]
    }
    assert members == {talk.alice.user_id: "join", talk.bob.user_id: "leave"}
    newest = (await talk.bob.get(f"{room}/messages", dir="b", limit=1))["chunk"]
    assert [event["content"]["membership"] for event in newest] == ["leave"]


async def test_members_at_a_sync_token_and_by_membership(server: WholeServer, talk: Talk) -> None:
    room = f"/rooms/{talk.room_id}"
    token = (await talk.alice.sync())["next_batch"]
    carol = await server.register("carol")
    await talk.alice.post(f"{room}/invite", {"user_id": carol.user_id})
    await talk.bob.post(f"{room}/leave")

    async def members(**query: Any) -> set[str]:
        return {event["state_key"] for event in (await talk.alice.get(f"{room}/members", **query))["chunk"]}

    assert await members() == {talk.alice.user_id, talk.bob.user_id, carol.user_id}
    assert await members(membership="join") == {talk.alice.user_id}
    assert await members(not_membership="leave") == {talk.alice.user_id, carol.user_id}
    assert await members(at=token) == {talk.alice.user_id, talk.bob.user_id}
    assert await members(at=token, membership="invite") == set()


@pytest.mark.parametrize("path", ["/rooms/{room}/initialSync", "/events"])
async def test_a_stranger_peeks_only_where_the_world_may_read(alice: Device, bob: Device, path: str) -> None:
    room_id = await alice.make_room(preset="public_chat")
    query = {"room_id": room_id, "timeout": 0} if path == "/events" else {}
    assert await bob.refused("GET", path.format(room=room_id), **query) == (403, "M_FORBIDDEN")


async def test_peeking(alice: Device, bob: Device) -> None:
    visibility = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "world_readable"},
    }
    room_id = await alice.make_room(preset="public_chat", initial_state=[visibility], visibility="public")
    await alice.send(room_id, "one")
    shown = await bob.get(f"/rooms/{room_id}/initialSync", limit=5)
    assert (shown["room_id"], shown["visibility"]) == (room_id, "public")
    assert "membership" not in shown
    assert shown["messages"]["chunk"][-1]["content"]["body"] == "one"
    assert ("m.room.create", "") in {(event["type"], event["state_key"]) for event in shown["state"]}
    sent = await alice.send(room_id, "two")
    news = await bob.get("/events", room_id=room_id, timeout=20_000, **{"from": shown["messages"]["end"]})
    assert [event["event_id"] for event in news["chunk"]] == [sent]
    assert news["chunk"][0]["room_id"] == room_id
    quiet = await bob.get("/events", room_id=room_id, timeout=0, **{"from": news["end"]})
    assert (quiet["chunk"], quiet["start"]) == ([], news["end"])


async def test_the_stream_of_all_rooms_is_gone(alice: Device) -> None:
    assert await alice.refused("GET", "/events", timeout=0) == (404, "M_NOT_FOUND")


_SHARED_FROM_JOIN = {
    "type": "m.room.history_visibility",
    "state_key": "",
    "content": {"history_visibility": "joined"},
}


async def test_an_event_by_its_id_alone(server: WholeServer, alice: Device, bob: Device) -> None:
    carol = await server.register("carol")
    room_id = await alice.make_room(preset="public_chat", initial_state=[_SHARED_FROM_JOIN])
    early = await alice.send(room_id, "before")
    await bob.post(f"/rooms/{room_id}/join")
    seen = await alice.send(room_id, "while")
    await bob.post(f"/rooms/{room_id}/leave")
    late = await alice.send(room_id, "after")
    shown = await bob.get(f"/events/{seen}")
    assert (shown["room_id"], shown["event_id"], shown["content"]["body"]) == (room_id, seen, "while")
    assert (await alice.get(f"/events/{late}"))["content"]["body"] == "after"
    for device, event_id in ((bob, early), (bob, late), (carol, seen), (alice, "$unknown")):
        assert await device.refused("GET", f"/events/{event_id}") == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", "/events/nothing") == (400, "M_INVALID_PARAM")

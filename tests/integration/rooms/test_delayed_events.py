"""Events that wait: sent once when their time has come, unless somebody puts them off, cancels or overtakes them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.whole_server import Device, WholeServer, call, running_whole_server

DELAYS = "/org.matrix.msc4140/delayed_events"


@pytest.fixture
async def server(dsn: str, tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with running_whole_server(dsn, tmp_path) as running:
        yield running


def _delayed(ms: object) -> dict[str, Any]:
    return {"org.matrix.msc4140.delay": ms}


async def _delay(device: Device, path: str, content: object, ms: int) -> str:
    status, answer = await device.call("PUT", path, content, **_delayed(ms))
    assert status == 200, answer
    delay_id: str = answer["delay_id"]
    return delay_id


async def _act(server: WholeServer, delay_id: str, action: str) -> tuple[int, str]:
    status, answer = await call(server.http, "POST", f"{DELAYS}/{delay_id}/{action}", {}, version="unstable")
    return status, answer.get("errcode", "")


async def _waiting(device: Device) -> list[str]:
    status, answer = await device.call("GET", DELAYS, version="unstable")
    assert status == 200
    return [event["delay_id"] for event in answer["delayed_events"]]


async def _all_sent(device: Device) -> None:
    """An event is noted as sent after it was sent."""
    while await _waiting(device):
        continue


async def _bodies(device: Device, room: str) -> list[str]:
    page = await device.get(f"/rooms/{quote(room)}/messages", dir="f", limit=100)
    return [event["content"]["body"] for event in page["chunk"] if event["type"] == "m.room.message"]


async def test_is_sent_when_its_time_has_come(server: WholeServer) -> None:
    alice = await server.register("alice")
    room = await alice.make_room()
    path = f"/rooms/{quote(room)}/send/m.room.message/t1"
    delay_id = await _delay(alice, path, {"msgtype": "m.text", "body": "later"}, 1)
    # Repeated before or after, it is the same event.
    assert await _delay(alice, path, {"msgtype": "m.text", "body": "later"}, 1) == delay_id
    since = (await alice.sync())["next_batch"]
    while not await _bodies(alice, room):
        since = (await alice.sync(since, timeout=5_000))["next_batch"]
    assert await _bodies(alice, room) == ["later"]
    assert await _delay(alice, path, {"msgtype": "m.text", "body": "later"}, 1) == delay_id
    await _all_sent(alice)
    assert await _act(server, delay_id, "send") == (200, "")
    assert await _act(server, delay_id, "cancel") == (409, "M_UNKNOWN")
    assert await _bodies(alice, room) == ["later"]


async def test_whoever_knows_the_id_decides(server: WholeServer) -> None:
    alice = await server.register("alice")
    room = await alice.make_room()
    ids = [
        await _delay(
            alice, f"/rooms/{quote(room)}/send/m.room.message/t{n}", {"msgtype": "m.text", "body": str(n)}, 60_000
        )
        for n in range(3)
    ]
    assert await _waiting(alice) == ids
    assert await _act(server, ids[0], "send") == (200, "")
    assert await _act(server, ids[1], "cancel") == (200, "")
    assert await _act(server, ids[1], "cancel") == (200, "")
    assert await _act(server, ids[1], "send") == (409, "M_UNKNOWN")
    assert await _act(server, ids[2], "restart") == (200, "")
    assert await _act(server, "unknown", "restart") == (404, "M_NOT_FOUND")
    assert await _waiting(alice) == [ids[2]]
    status, shown = await alice.call("GET", f"{DELAYS}/{ids[2]}", version="unstable")
    assert (status, shown["delay"], shown["content"]["body"]) == (200, 60_000, "2")
    bob = await server.register("bob")
    assert await _waiting(bob) == []
    assert (await bob.call("GET", f"{DELAYS}/{ids[2]}", version="unstable"))[0] == 404
    assert await _bodies(alice, room) == ["0"]
    older = await call(server.http, "POST", f"{DELAYS}/{ids[2]}", {"action": "send"}, version="unstable")
    assert older == (200, {})
    assert await _bodies(alice, room) == ["0", "2"]


async def test_state_that_somebody_else_set_meanwhile_stays(server: WholeServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room = await alice.make_room(preset="public_chat", power_level_content_override={"state_default": 0})
    await bob.post(f"/rooms/{quote(room)}/join")
    path = f"/rooms/{quote(room)}/state/org.example.call/"
    gone = await _delay(alice, path, {"here": False}, 60_000)
    other = await _delay(alice, f"/rooms/{quote(room)}/state/org.example.call/mine", {"here": False}, 60_000)
    await bob.put(path, {"here": "bob"})
    assert await _act(server, gone, "send") == (200, "")
    assert await _act(server, other, "send") == (200, "")
    assert await alice.get(path) == {"here": "bob"}
    assert await alice.get(f"/rooms/{quote(room)}/state/org.example.call/mine") == {"here": False}


async def test_limits_and_permissions(server: WholeServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room = await alice.make_room()
    path = f"/rooms/{quote(room)}/send/m.room.message/t1"
    for delay in ("0", "-1", "x", "9" * 30):
        assert (await alice.refused("PUT", path, {}, **_delayed(delay)))[0] == 400
    status, answer = await alice.call("PUT", path, {}, **_delayed(10**11))
    assert (status, answer["org.matrix.msc4140.errcode"]) == (400, "M_MAX_DELAY_EXCEEDED")
    assert await bob.refused("PUT", path, {}, **_delayed(1_000)) == (403, "M_FORBIDDEN")
    member = f"/rooms/{quote(room)}/state/m.room.member/{quote(alice.user_id)}"
    assert (await alice.refused("PUT", member, {"membership": "leave"}, **_delayed(1_000)))[0] == 400
    for number in range(100):
        await _delay(alice, f"/rooms/{quote(room)}/send/m.room.message/m{number}", {"body": "a"}, 60_000)
    status, answer = await alice.call("PUT", path, {}, **_delayed(1_000))
    assert (status, answer["org.matrix.msc4140.errcode"]) == (400, "M_MAX_DELAYED_EVENTS_EXCEEDED")


async def test_an_event_whose_gateway_died_is_sent_once(server: WholeServer) -> None:
    alice = await server.register("alice")
    room = await alice.make_room()
    path = f"/rooms/{quote(room)}/send/m.room.message/t1"
    delay_id = await _delay(alice, path, {"msgtype": "m.text", "body": "once"}, 60_000)
    assert await _act(server, delay_id, "send") == (200, "")
    # It died between the commit of the room and its own note: another one takes the event again.
    again = "UPDATE accounts.delayed_events SET taken = true, ended_at = NULL, outcome = NULL, due_at = now()"
    await server.accounts.execute(again)
    await _all_sent(alice)
    assert await _bodies(alice, room) == ["once"]


async def test_what_was_sent_stays_sent_whoever_speaks_next(server: WholeServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room = await alice.make_room(preset="public_chat", power_level_content_override={"state_default": 0})
    await bob.post(f"/rooms/{quote(room)}/join")
    path = f"/rooms/{quote(room)}/state/org.example.call/"
    delay_id = await _delay(alice, path, {"here": False}, 60_000)
    assert await _act(server, delay_id, "send") == (200, "")
    await bob.put(path, {"here": "bob"})
    # As before: sent, not noted, and due once more, now that somebody else has set the state.
    again = "UPDATE accounts.delayed_events SET taken = true, ended_at = NULL, outcome = NULL, due_at = now()"
    await server.accounts.execute(again)
    await _all_sent(alice)
    assert await _act(server, delay_id, "send") == (200, "")
    assert await _act(server, delay_id, "cancel") == (409, "M_UNKNOWN")
    assert await alice.get(path) == {"here": "bob"}


@pytest.mark.parametrize("mark", ["suspended", "locked"])
async def test_an_account_under_moderation_says_nothing_later_either(server: WholeServer, mark: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room = await alice.make_room(preset="public_chat")
    await bob.post(f"/rooms/{quote(room)}/join")
    content = {"msgtype": "m.text", "body": "later"}
    ids = [await _delay(bob, f"/rooms/{quote(room)}/send/m.room.message/{n}", content, 60_000) for n in range(2)]
    await server.accounts.execute(f"UPDATE accounts.users SET {mark} = true WHERE user_id = $1", bob.user_id)
    assert await _act(server, ids[0], "send") == (403, "M_USER_SUSPENDED")
    due = "UPDATE accounts.delayed_events SET due_at = now() WHERE delay_id = $1"
    await server.accounts.execute(due, ids[1])
    # Nothing that the other one may read tells when it was given up; the table does.
    ended = "SELECT count(*) FROM accounts.delayed_events WHERE outcome = 'cancel'"
    while await server.accounts.fetchval(ended) < 2:
        continue
    assert await _bodies(alice, room) == []

"""Attacks by how much is asked, and by whoever is shut out."""

import asyncio
import ssl
import time
from collections import Counter
from typing import Any
from urllib.parse import quote

from matrixcore.identifiers import RoomId
from tests.fixtures.server_process import free_port
from tests.hostile.hostile_peer import CLOCK, V1, V2
from tests.hostile.stage import Stage


async def shut_out(stage: Stage) -> str:
    """What a server does that the room's ACL denies: PDUs, EDUs, reads, joins, and another port of its host."""
    room_id = await stage.new_room()
    evil = stage.evil
    acl = {"allow": ["*"], "deny": ["127.0.0.1"], "allow_ip_literals": True}
    await stage.alice.put(f"/rooms/{quote(room_id)}/state/m.room.server_acl/", acl)
    since = (await stage.alice.sync())["next_batch"]
    event = evil.event(room_id, "in spite of the ACL")
    results = await evil.results(event)
    assert "ACL" in results[event.event_id]["error"], results
    typing = {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": evil.user, "typing": True}}
    read = {evil.user: {"event_ids": [event.event_id], "data": {"ts": CLOCK.now_ms()}}}
    receipt = {"edu_type": "m.receipt", "content": {room_id: {"m.read": read}}}
    assert (await evil.put(edus=[typing, receipt]))[0] == 200
    room, user, tip = quote(room_id), quote(evil.user), quote(evil.rooms[room_id].tip.event_id, safe="")
    asked = {
        "make_join": f"{V1}make_join/{room}/{user}?ver=11",
        "make_leave": f"{V1}make_leave/{room}/{user}",
        "make_knock": f"{V1}make_knock/{room}/{user}?ver=11",
        "state": f"{V1}state/{room}?event_id={tip}",
        "state_ids": f"{V1}state_ids/{room}?event_id={tip}",
        "backfill": f"{V1}backfill/{room}?v={tip}&limit=10",
        "event_auth": f"{V1}event_auth/{room}/{tip}",
        "event": f"{V1}event/{tip}",
    }
    for name, path in asked.items():
        status, answer = await evil.request("GET", path)
        assert status in (403, 404), (name, status, answer)
    body = {"earliest_events": [], "latest_events": [evil.rooms[room_id].tip.event_id], "limit": 10}
    status, answer = await evil.request("POST", f"{V1}get_missing_events/{room}", body)
    assert status == 403, answer
    join = evil.rooms[room_id].join
    status, answer = await evil.request(
        "PUT", f"{V2}send_join/{room}/{quote(join.event_id, safe='')}", dict(join.fields)
    )
    assert status == 403, answer
    await stage.goes_on(room_id)
    answer = await stage.alice.sync(since)
    told = answer["rooms"]["join"][room_id].get("ephemeral", {}).get("events", [])
    assert not any(evil.user in str(one) for one in told), told
    assert await stage.content_of(room_id, event.event_id) is None
    return f"PDU refused by name, EDUs dropped, {len(asked) + 2} kinds of requests 403 or 404"


async def false_names(stage: Stage) -> str:
    """Requests in another's name, of other spellings of its own, and for another destination."""
    room_id = await stage.new_room()
    evil = stage.evil
    path = f"{V1}make_join/{quote(room_id)}/{quote(stage.good.user)}?ver=11"
    origins = [stage.good.name, stage.server.server_name, evil.name.replace("127.0.0.1", "localhost")]
    origins += [evil.name.partition(":")[0], f"{evil.name} ", f"{evil.name}\x00", f"127.0.0.1:{free_port()}"]
    for origin in origins:
        if "\x00" in origin:
            continue
        status, answer = await evil.request("GET", path, origin=origin)
        assert status in (400, 401, 403), (origin, status, answer)
    await stage.goes_on(room_id)
    return f"{len(origins) - 1} of {len(origins) - 1} refused"


async def device_flood(stage: Stage) -> str:
    """To-device messages, a hundred in each transaction, as fast as they are taken."""
    room_id = await stage.new_room()
    many = stage.count(60, 6)
    user, device = stage.alice.user_id, stage.alice.device_id
    answers: Counter[int] = Counter()

    def message(number: int) -> dict[str, Any]:
        content = {
            "sender": stage.evil.user,
            "type": "m.flood",
            "message_id": f"flood{number}",
            "messages": {user: {device: {"padding": "x" * 1_000}}},
        }
        return {"edu_type": "m.direct_to_device", "content": content}

    async def flood(transaction: int) -> None:
        status, _ = await stage.evil.put(edus=[message(transaction * 100 + number) for number in range(100)])
        answers[status] += 1

    since = (await stage.alice.sync())["next_batch"]
    for start in range(0, many, 20):
        await asyncio.gather(*(flood(number) for number in range(start, min(start + 20, many))))
    took = await stage.goes_on(room_id)
    began = time.monotonic()
    answer = await stage.alice.sync(since)
    sync_ms = 1_000 * (time.monotonic() - began)
    count = len(answer.get("to_device", {}).get("events", []))
    assert count <= 100, count
    assert sync_ms < 5_000
    said = ", ".join(f"{number} x {status}" for status, number in sorted(answers.items()))
    return f"{many} transactions of 100: {said}; two sends {took:.1f} s, /sync {sync_ms:.0f} ms with {count} of them"


async def edu_flood(stage: Stage) -> str:
    """Typing, receipts and presence of users and rooms that are none of the server's business."""
    room_id = await stage.new_room()
    evil = stage.evil
    since = (await stage.alice.sync())["next_batch"]
    for number in range(stage.count(30, 3)):
        rooms = [RoomId(f"!r{number}x{one}:{evil.name}") for one in range(60)]
        edus: list[dict[str, Any]] = [
            {"edu_type": "m.typing", "content": {"room_id": one, "user_id": evil.user, "typing": True}} for one in rooms
        ]
        other = {"room_id": room_id, "user_id": stage.good.user, "typing": True}
        edus.append({"edu_type": "m.typing", "content": other})
        push = [{"user_id": f"@u{one}:{evil.name}", "presence": "online"} for one in range(500)]
        edus.append({"edu_type": "m.presence", "content": {"push": push}})
        read = {f"@u{one}:{evil.name}": {"event_ids": ["$x"], "data": {"ts": 1}} for one in range(500)}
        edus.append({"edu_type": "m.receipt", "content": {room_id: {"m.read": read}}})
        edus += [{"edu_type": "org.example.unknown", "content": {}}] * 30
        status, answer = await evil.put(edus=edus)
        assert status == 200, answer
    took = await stage.goes_on(room_id)
    answer = await stage.alice.sync(since)
    text = str(answer["rooms"]["join"][room_id].get("ephemeral", {})) + str(answer.get("presence", {}))
    assert "@u1:" not in text
    assert stage.good.user not in str(answer["rooms"]["join"][room_id].get("ephemeral", {}))
    return f"nothing of it is told to anybody; two sends {took:.1f} s"


async def slow_requests(stage: Stage) -> str:
    """Connections that ask a byte at a time, in the head and in the body."""
    room_id = await stage.new_room()
    many = stage.count(200, 40)
    host, _, port = stage.server.server_name.partition(":")
    context = stage.server.peer_context()
    head = b"PUT /_matrix/federation/v1/send/slow HTTP/1.1\r\nHost: x\r\n"
    body = head + b"Content-Length: 60000000\r\n\r\n{"
    opened = await asyncio.gather(
        *(_open(host, int(port), context, head if number % 2 else body) for number in range(many))
    )
    took = await stage.goes_on(room_id)
    for _, writer in opened:
        writer.close()
    return f"{many} of them keep nobody else waiting (two sends in {took:.1f} s)"


async def _open(
    host: str, port: int, context: ssl.SSLContext, begin: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.write(begin)
    await writer.drain()
    return reader, writer


async def request_flood(stage: Stage) -> str:
    """Requests as fast as they can be made, each of which costs the server something."""
    room_id = await stage.new_room()
    evil = stage.evil
    many = stage.count(400, 90)
    path = f"{V1}state/{quote(room_id)}?event_id={quote(evil.rooms[room_id].join.event_id, safe='')}"
    flood = asyncio.gather(*(evil.request("GET", path) for _ in range(many)))
    took = await stage.goes_on(room_id)
    answers = Counter(status for status, _ in await flood)
    assert set(answers) <= {200, 429}, answers
    said = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
    return f"{many} at once: {said}; two sends beside them {took:.1f} s"

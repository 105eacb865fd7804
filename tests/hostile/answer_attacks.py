"""Attacks by what a hostile server answers when it is asked: slowly, endlessly, in circles, and with lies."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from aiohttp import web

from matrixcore.identifiers import EventId
from matrixcore.signing import SigningKey, sign_json
from tests.fixtures.foreign_room import ForeignRoom
from tests.hostile.hostile_peer import CLOCK, KEYS, V1, V2, Answer, HostilePeer, Stream, answer_with, hostile_peer
from tests.hostile.stage import Stage

GIVEN_UP_SECONDS = 60.0
NOWHERE = "/_matrix/federation/v1/query/profile?user_id=%40nobody%3Alocalhost&field=displayname"


async def slow_answers(stage: Stage) -> str:
    """Answers about history that come a byte a second, after events with gaps in many rooms."""
    evil = stage.evil
    rooms = [await stage.new_room() for _ in range(stage.count(8, 2))]
    drip = Stream(b"x", pause_seconds=1.0)
    evil.answers[V1] = drip
    began = time.monotonic()
    for room_id in rooms:
        above = evil.event(room_id, "above a gap", prev_events=[EventId("$" + "g" * 43)])
        assert await evil.results(above) == {above.event_id: {}}
    took = max([await stage.goes_on(room_id) for room_id in rooms])
    said = f"{len(rooms)} rooms go on meanwhile (two sends in {took:.1f} s)"
    if not stage.short:
        async with asyncio.timeout(GIVEN_UP_SECONDS):
            await drip.broken.wait()
        said += f"; the first answer is given up after {time.monotonic() - began:.0f} s and {drip.sent} bytes"
    evil.answers.clear()
    return said


async def endless_answers(stage: Stage) -> str:
    """Answers about history without an end."""
    room_id = await stage.new_room()
    evil = stage.evil
    endless = Stream(b"x" * 65_536)
    evil.answers[V1] = endless
    above = evil.event(room_id, "above a gap", prev_events=[EventId("$" + "e" * 43)])
    assert await evil.results(above) == {above.event_id: {}}
    async with asyncio.timeout(GIVEN_UP_SECONDS):
        await endless.broken.wait()
    evil.answers.clear()
    await stage.goes_on(room_id)
    return (
        f"{endless.count} answers, {endless.sent / 2**20:.0f} MiB of which left the hostile server before they were cut"
    )


async def redirects(stage: Stage) -> str:
    """Answers that lead back to themselves, of federation and of well-known files."""
    room_id = await stage.new_room()
    evil = stage.evil
    looped = _Looping()
    evil.answers[V1] = looped
    above = evil.event(room_id, "above a gap", prev_events=[EventId("$" + "r" * 43)])
    assert await evil.results(above) == {above.event_id: {}}
    await stage.until(looped.was_asked)
    evil.answers.clear()
    files = _Looping()
    stage.names["loop.example"] = files
    took = await _claim(evil, "loop.example")
    await stage.goes_on(room_id)
    assert files.well_known <= 6, files.well_known
    return f"not followed by requests; well-known: {files.well_known} requests, then refused (401 after {took:.1f} s)"


class _Looping:
    """Redirects to where it was asked, each time by another name of it."""

    def __init__(self) -> None:
        self.count = self.well_known = 0

    async def was_asked(self) -> bool:
        return self.count > 0

    async def __call__(self, request: web.Request) -> web.Response:
        self.count += 1
        self.well_known += request.path.startswith("/.well-known/")
        return web.Response(status=302, headers={"Location": f"https://{request.host}{request.path}?{self.count}"})


async def _claim(evil: HostilePeer, origin: str, key: SigningKey | None = None) -> float:
    """Ask in the name of a server whose keys are to be looked for; the seconds until that was refused."""
    began = time.monotonic()
    status, answer = await evil.request("GET", NOWHERE, origin=origin, key=key)
    assert status == 401, (status, answer)
    return time.monotonic() - began


async def huge_well_known(stage: Stage) -> str:
    """A well-known file of a gigabyte."""
    room_id = await stage.new_room()
    huge = Stream(b" " * 65_536, start=b"{")
    stage.names["huge.example"] = _on(huge, "/.well-known/")
    took = await _claim(stage.evil, "huge.example")
    await stage.goes_on(room_id)
    assert huge.count == 1
    assert huge.sent < 16 << 20, huge.sent
    return f"cut: {huge.sent >> 10} KiB of it left the hostile server; refused (401) after {took:.1f} s"


async def dripping_well_known(stage: Stage) -> str:
    """A well-known file that comes in drops."""
    room_id = await stage.new_room()
    drip = Stream(b" ", pause_seconds=0.5, start=b"{")
    stage.names["drip.example"] = _on(drip, "/.well-known/")
    asking = asyncio.create_task(_claim(stage.evil, "drip.example"))
    took = await stage.goes_on(room_id)
    if stage.short:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return f"others go on meanwhile (two sends in {took:.1f} s)"
    return f"others go on meanwhile (two sends in {took:.1f} s); refused (401) after {await asking:.0f} s"


async def inner_addresses(stage: Stage) -> str:
    """A well-known file, and a redirect of one, that lead into the operator's own network."""
    room_id = await stage.new_room()
    asked: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "https://169.254.169.254/latest/meta-data"})

    async def delegate(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"m.server": "10.0.0.1:443"})

    stage.names |= {"inner.example": _on(redirect, "/.well-known/"), "led.example": _on(delegate, "/.well-known/")}
    took = max(await _claim(stage.evil, "inner.example"), await _claim(stage.evil, "led.example"))
    await stage.goes_on(room_id)
    assert len(asked) == 2
    assert not any(host.startswith(("169.254.", "10.")) for host in stage.reached), stage.reached
    return f"neither address is called; refused (401) after {took:.1f} s"


def _on(answer: Answer, start: str) -> Answer:
    """An answer to some paths only."""

    async def choose(request: web.Request) -> web.StreamResponse:
        return await answer(request) if request.path.startswith(start) else web.Response(status=404)

    return choose


async def lying_key_servers(stage: Stage) -> str:
    """Key documents of others, signed by nobody, by other keys, long over, endless, and no documents at all."""
    room_id = await stage.new_room()
    evil, lies = stage.evil, list(LIES.values())
    for lie in lies:
        # Each by a server of its own: one that has lied is left alone for a while.
        async with hostile_peer(stage.authority, stage.server.server_name) as liar:
            liar.answers[KEYS] = lie(liar, stage.good)
            status, answer = await liar.request("GET", NOWHERE)
            assert status == 401, (status, answer)
            assert liar.asked == [KEYS]
    # What it said of the good one's key counts for nothing: that one goes on, and nobody else speaks for it.
    forged = stage.good.event(room_id, "by the lie", signing_key=SigningKey("evil", b"\x77" * 32))
    assert "error" in (await evil.results(forged))[forged.event_id]
    await stage.goes_on(room_id)
    return f"{len(lies)} kinds of documents not believed (401); the key of a good peer stays"


def _other_server(liar: HostilePeer, good: HostilePeer) -> Answer:
    keys = {good.key.key_id: {"key": liar.key.public_key_base64}}
    return answer_with(sign_json(liar.key_document(server_name=good.name, verify_keys=keys), good.name, liar.key))


def _other_key(liar: HostilePeer, _good: HostilePeer) -> Answer:
    key = SigningKey("other", b"\x77" * 32)
    keys = {liar.key.key_id: {"key": key.public_key_base64}}
    return answer_with(liar.key_document(verify_keys=keys))


LIES: dict[str, Callable[[HostilePeer, HostilePeer], Answer]] = {
    "of another server": _other_server,
    "of another key": _other_key,
    "signed by nobody": lambda liar, _: answer_with({**liar.key_document(), "signatures": {}}),
    "over": lambda liar, _: answer_with(liar.key_document(valid_until_ts=CLOCK.now_ms() - 1)),
    "without keys": lambda liar, _: answer_with(liar.key_document(verify_keys={})),
    "no object": lambda _, __: answer_with(["keys"]),
    "endless": lambda _, __: Stream(b"x" * 65_536),
}


async def lying_joins(stage: Stage) -> str:
    """Answers to send_join with state of another room, without a creation, signed by nobody, doubled, and endless."""
    room_id = await stage.new_room()
    evil = stage.evil
    said: list[str] = []
    for name, spoil in SPOILED.items():
        foreign = ForeignRoom(server=evil.name, key=evil.key, creator=evil.user)
        foreign.room_id, before = foreign.room_id, foreign.room_id
        serve_joins(evil, foreign, spoil)
        status, answer = await stage.alice.call("POST", f"/join/{quote(before)}", {}, server_name=evil.name)
        assert status in (403, 404, 502, 504), (name, status, answer)
        said.append(f"{name}: {status}")
        evil.answers.clear()
        joined = (await stage.alice.sync()).get("rooms", {}).get("join", {})
        assert before not in joined
    await stage.goes_on(room_id)
    return "; ".join(said)


Spoiler = Any  # (room, another room, the answer) -> an answer, or a handler in its place


def _other_room(room: ForeignRoom, other: ForeignRoom, body: dict[str, Any]) -> Any:
    return {**body, "state": [*body["state"], dict(other.state["m.room.join_rules", ""].fields)]}


def _no_creation(room: ForeignRoom, other: ForeignRoom, body: dict[str, Any]) -> Any:
    return {
        key: [one for one in events if one["type"] != "m.room.create"] for key, events in body.items() if key != "event"
    }


def _unsigned(room: ForeignRoom, other: ForeignRoom, body: dict[str, Any]) -> Any:
    return {key: [{**one, "signatures": {}} for one in events] for key, events in body.items() if key != "event"}


def _doubled(room: ForeignRoom, other: ForeignRoom, body: dict[str, Any]) -> Any:
    second = room.make("m.room.join_rules", {"join_rule": "invite"}, sender=room.creator, state_key="")
    return {**body, "state": [*body["state"], dict(second.fields)]}


def _endless(room: ForeignRoom, other: ForeignRoom, body: dict[str, Any]) -> Any:
    return Stream(b"x" * 65_536, start=b'{"state":[{"content":{"padding":"')


SPOILED: dict[str, Spoiler] = {
    "state of another room": _other_room,
    "no creation": _no_creation,
    "not signed": _unsigned,
    "a key twice": _doubled,
    "an endless event": _endless,
}


def serve_joins(evil: HostilePeer, room: ForeignRoom, spoil: Spoiler) -> None:
    """Answer make_join and send_join for a room, the latter as spoilt."""
    state = [dict(event.fields) for event in room.state.values()]
    other = ForeignRoom(server=evil.name, key=evil.key, creator=evil.user, join_rule={"join_rule": "knock"})
    other.room_id = type(room.room_id)(f"!elsewhere:{evil.name}")

    async def make_join(request: web.Request) -> web.Response:
        return web.json_response(room.join_template(request.path.rpartition("/")[2], CLOCK.now_ms()))

    async def send_join(request: web.Request) -> web.StreamResponse:
        body = {"state": state, "auth_chain": state, "event": await request.json()}
        stranger = other.make("m.room.join_rules", {"join_rule": "public"}, sender=room.creator, state_key="")
        other.state["m.room.join_rules", ""] = stranger
        answer = spoil(room, other, body)
        if isinstance(answer, Stream):
            return await answer(request)
        return web.json_response(answer)

    evil.answers[f"{V1}make_join/"] = make_join
    evil.answers[f"{V2}send_join/"] = send_join

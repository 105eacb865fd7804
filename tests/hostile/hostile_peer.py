"""A server of another operator that means no good: it signs what it likes and answers what an attack tells it to."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from matrixcore.event_building import build_event, finish_event
from matrixcore.event_hashes import reference_hash_base64
from matrixcore.events import Event, parse_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersionRules
from matrixcore.signing import SigningKey, encode_base64, sign_json
from tessera.clock import SystemClock
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.server_process import free_port

CLOCK = SystemClock()
V1, V2 = "/_matrix/federation/v1/", "/_matrix/federation/v2/"
KEYS = "/_matrix/key/v2/server"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class RoomView:
    """A room as this server knows it.

    Attributes:
        auth: what its user's messages cite.
        join: its user's member event, on which everything may be put.
        tip: its newest event.
    """

    rules: RoomVersionRules
    auth: list[EventId]
    join: Event
    tip: Event
    hashes: dict[EventId, str] = field(default_factory=dict)


@dataclass
class HostilePeer:
    """Asks a server what it likes, and answers by `answers`: beginning of the path -> handler, its keys among them."""

    name: ServerName
    key: SigningKey
    session: aiohttp.ClientSession
    target: str
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    rooms: dict[RoomId, RoomView] = field(default_factory=dict)
    count: int = 0

    @property
    def user(self) -> UserId:
        """Whom its events are of."""
        return UserId(f"@mallory:{self.name}")

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        origin: str | None = None,
        key: SigningKey | None = None,
    ) -> tuple[int, Any]:
        """(status, JSON) of a request that is signed by whom an attack wants it to be."""
        origin, key = origin or self.name, key or self.key
        signed: dict[str, Any] = {"method": method, "uri": path, "origin": origin, "destination": self.target}
        if body is not None:
            signed["content"] = body
        signature = encode_base64_signature(signed, key)
        header = f'X-Matrix origin="{origin}",destination="{self.target}",key="{key.key_id}",sig="{signature}"'
        data = None if body is None else io.BytesIO(orjson.dumps(body))
        headers = {"Authorization": header, "Content-Type": "application/json"}
        url = URL(f"https://{self.target}{path}", encoded=True)
        async with self.session.request(method, url, data=data, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def put(self, pdus: Sequence[Event | Mapping[str, Any]] = (), edus: Sequence[Any] = (), txn: str = "") -> Any:
        """(status, JSON) of a transaction; asked to wait, it waits."""
        self.count += 1
        path = f"{V1}send/{txn or self.count}"
        body = {
            "origin": self.name,
            "origin_server_ts": CLOCK.now_ms(),
            "pdus": [dict(one.fields) if isinstance(one, Event) else one for one in pdus],
            "edus": list(edus),
        }
        return await self.request("PUT", path, body)

    async def results(self, *pdus: Event | Mapping[str, Any]) -> dict[str, Any]:
        """What is answered about the PDUs of a transaction that is taken."""
        status, answer = await self.put(pdus)
        assert status == 200, answer
        found: dict[str, Any] = answer["pdus"]
        return found

    async def join(self, room_id: RoomId, version: str) -> None:
        """Join a room of the target as anybody may."""
        rules = ROOM_VERSIONS[version]
        path = f"{V1}make_join/{quote(room_id)}/{quote(self.user)}?ver={version}"
        status, answer = await self.request("GET", path)
        assert status == 200, answer
        fields = {**answer["event"], "origin_server_ts": CLOCK.now_ms()}
        if rules.event_id_format is EventIdFormat.GIVEN:
            fields["event_id"] = self.new_id()
        join = finish_event(fields, rules, server_name=self.name, signing_key=self.key)
        path = f"{V2}send_join/{quote(room_id)}/{quote(join.event_id, safe='')}"
        status, answer = await self.request("PUT", path, dict(join.fields))
        assert status == 200, answer
        state = [parse_event(one, rules) for one in answer["state"]]
        wanted = ("m.room.create", "m.room.power_levels")
        cited = [event.event_id for event in state if event.type in wanted]
        hashes = {event.event_id: reference_hash_base64(event.fields, rules) for event in (*state, join)}
        self.rooms[room_id] = RoomView(rules, [*cited, join.event_id], join, join, hashes)

    def new_id(self) -> EventId:
        """The ID of an event of version 1 or 2."""
        self.count += 1
        return EventId(f"$evil{self.count}:{self.name}")

    def event(self, room_id: RoomId, body: str = "hello", **changed: Any) -> Event:
        """A message on top of the room that all would take, unless it is changed.

        Args:
            changed: arguments of `build_event`.
        """
        room = self.rooms[room_id]
        tip = room.tip
        is_old = room.rules.event_id_format is EventIdFormat.GIVEN
        made: dict[str, Any] = {
            "rules": room.rules,
            "room_id": room_id,
            "sender": self.user,
            "event_type": "m.room.message",
            "state_key": None,
            "content": {"msgtype": "m.text", "body": body},
            "origin_server_ts": CLOCK.now_ms(),
            "depth": min(tip.depth + 1, 2**53 - 1),
            "prev_events": [tip.event_id],
            "auth_events": room.auth,
            "server_name": self.name,
            "signing_key": self.key,
            "event_id": self.new_id() if is_old else None,
            **changed,
        }
        cited = (*made["prev_events"], *made["auth_events"])
        made.setdefault("reference_hashes", {one: room.hashes.get(one, encode_base64(b"?" * 32)) for one in cited})
        event = build_event(**made)
        room.hashes[event.event_id] = reference_hash_base64(event.fields, room.rules)
        return event

    def say(self, room_id: RoomId, body: str = "hello") -> Event:
        """A message on top of the room, on which the next one will lie."""
        room = self.rooms[room_id]
        room.tip = self.event(room_id, body)
        return room.tip

    def key_document(self, **changed: Any) -> dict[str, Any]:
        """Its keys, signed with them."""
        document = {
            "server_name": self.name,
            "valid_until_ts": CLOCK.now_ms() + 86_400_000,
            "verify_keys": {self.key.key_id: {"key": self.key.public_key_base64}},
            "old_verify_keys": {},
            **changed,
        }
        return sign_json(document, self.name, self.key)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer as the longest beginning of the path says."""
        self.asked.append(request.path)
        for start in sorted(self.answers, key=len, reverse=True):
            if request.path.startswith(start):
                return await self.answers[start](request)
        if request.path == KEYS:
            return web.json_response(self.key_document())
        if request.path.startswith(V1 + "send/"):
            return web.json_response({"pdus": {}})
        return web.json_response({"errcode": "M_NOT_FOUND", "error": "nothing"}, status=404)


def encode_base64_signature(signed: Mapping[str, Any], key: SigningKey) -> str:
    """A signature over whatever it is, in the form that canonical JSON would have."""
    return key.sign(orjson.dumps(signed, option=orjson.OPT_SORT_KEYS))


def answer_with(value: Any, status: int = 200) -> Answer:
    """Always the same."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(value, status=status)

    return answer


@dataclass
class Stream:
    """An answer that does not end, and how much of it was taken before the asker gave up."""

    piece: bytes
    pause_seconds: float = 0.0
    limit: int = 1 << 30
    start: bytes = b'{"padding":"'
    sent: int = 0
    count: int = 0
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.count += 1
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            await response.write(self.start)
            while self.sent < self.limit:
                await response.write(self.piece)
                self.sent += len(self.piece)
                await asyncio.sleep(self.pause_seconds)
        except (ConnectionError, asyncio.CancelledError):
            self.broken.set()
            raise
        return response


@asynccontextmanager
async def hostile_peer(
    authority: PeerAuthority, target: str, *, host: str = "127.0.0.1", seed: bytes = b"\x66"
) -> AsyncIterator[HostilePeer]:
    """A server with a valid certificate for its name."""
    port = free_port()
    connector = aiohttp.TCPConnector(ssl=authority.client_context(), limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        peer = HostilePeer(ServerName(f"{host}:{port}"), SigningKey("evil", seed * 32), session, target)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", peer.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=authority.server_context()).start()
        try:
            yield peer
        finally:
            await runner.cleanup()

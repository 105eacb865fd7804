"""federation_in on real shards with a running writer, and another server's requests to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from typing import Any, cast
from urllib.parse import quote

import httpx
import orjson
from remote_room import THERE, THERE_KEY, RemoteRoom
from writer_world import KEY, SERVER, World

from matrixcore.event_signing import sign_event
from matrixcore.events import Event
from matrixcore.identifiers import RoomId, ServerName
from matrixcore.server_keys import ServerKey
from matrixcore.signing import SigningKey, sign_json
from services.federation_in.app import federation_routers, federation_routes
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.intake import Intake, open_intake
from tessera.clock import SystemClock
from tessera.config import Settings
from tessera.federation.client import FederationClient
from tessera.federation.errors import PeerRefused, PeerUnreachable
from tessera.federation.opening import open_federation
from tessera.federation.own_policy_server import SENDER_LIMIT, OwnPolicyServer
from tessera.http.app import create_app
from tessera.http.limits import LocalRateLimits, Rate
from tessera.storage.database import Database
from tessera.storage.server_keys import set_server_keys

FOR_EVER = 2**53 - 1
Answer = Callable[[Mapping[str, Any]], Any]


@dataclass(slots=True)
class FakePeers:
    """In place of the client: other servers, whose answers a test writes.

    Attributes:
        answers: (server, beginning of the path) -> what it answers to a query or body; paths of federation/v1 without
            that, others whole.
        asked: (server, path, query or body) of every request.
    """

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    asked: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)

    async def get(self, server: str, path: str, query: Mapping[str, Any] | None = None, **_more: Any) -> Any:
        return await self._answer(server, path, query or {})

    async def post(self, server: str, path: str, body: Mapping[str, Any], *_more: Any, **_most: Any) -> Any:
        return await self._answer(server, path, body)

    async def _answer(self, server: str, path: str, said: Mapping[str, Any]) -> Any:
        self.asked.append((server, path, said))
        for (name, start), answer in self.answers.items():
            whole = start if start.startswith("/") else f"/_matrix/federation/v1/{start}"
            if name == server and path.startswith(whole):
                answered = answer({**dict(said), "path": path})
                return await answered if isawaitable(answered) else answered
        if any(name == server for name, _ in self.answers):
            raise PeerRefused(404, "M_NOT_FOUND", "nothing")
        raise PeerUnreachable(server)


@dataclass(slots=True)
class PeerWorld:
    """A federation_in beside a world's writer."""

    world: World
    deps: FederationInDeps
    intake: Intake
    client: httpx.AsyncClient
    peers: FakePeers

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        origin: ServerName = THERE,
        key: SigningKey = THERE_KEY,
    ) -> httpx.Response:
        """A signed request of another server. `path` begins behind /_matrix/federation/v1/, or is whole."""
        uri = path if path.startswith("/") else f"/_matrix/federation/v1/{path}"
        signed: dict[str, Any] = {"method": method, "uri": uri, "origin": origin, "destination": SERVER}
        if body is not None:
            signed["content"] = body
        signature = sign_json(signed, origin, key, strict=False)["signatures"][origin][key.key_id]
        header = f'X-Matrix origin="{origin}",destination="{SERVER}",key="{key.key_id}",sig="{signature}"'
        content = None if body is None else orjson.dumps(body)
        return await self.client.request(method, uri, content=content, headers={"Authorization": header})

    async def get(self, path: str, *, origin: ServerName = THERE, key: SigningKey = THERE_KEY) -> httpx.Response:
        return await self.request("GET", path, origin=origin, key=key)

    async def send(self, *events: Event, txn: str = "", edus: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
        """The results of a transaction that must be taken."""
        answer = await self.put_transaction(*events, txn=txn, edus=edus, **more)
        assert answer.status_code == 200, answer.text
        results: dict[str, Any] = answer.json()["pdus"]
        return results

    async def put_transaction(
        self, *events: Event | Mapping[str, Any], txn: str = "", edus: Sequence[Any] = (), **more: Any
    ) -> httpx.Response:
        pdus = [dict(one.fields) if isinstance(one, Event) else one for one in events]
        body = {"origin": more.get("origin", THERE), "origin_server_ts": 1, "pdus": pdus, "edus": list(edus)}
        return await self.request("PUT", f"send/{txn or self.world.ids.letters(12)}", body, **more)

    async def settled(self, room: RemoteRoom, *events: Event) -> None:
        """When nothing lies in the inbox of a room any more, and the events are stored."""
        await self.until(lambda: self._is_settled(room, events))

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """When something is so; it is looked for again and again, as other tasks bring it about."""
        clock = self.deps.clock
        end = clock.monotonic() + seconds
        while not await condition():
            assert clock.monotonic() < end, "it never came about"
            await clock.sleep(0.02)

    async def _is_settled(self, room: RemoteRoom, events: Sequence[Event]) -> bool:
        database = self.world.shards.of_room(room.room_id)
        query = "SELECT count(*) FROM rooms.events WHERE room_id = $1 AND event_id = ANY($2::text[])"
        count = await database.fetchval(query, room.room_id, [event.event_id for event in events])
        return bool(count == len(events)) and not await room.inbox_states()


@asynccontextmanager
async def peer_world(world: World, accounts: Database, **overrides: Any) -> AsyncIterator[PeerWorld]:
    """A federation_in whose peers' keys are known; the writer must run already."""
    settings = Settings.for_tests(server_name=SERVER, **overrides)
    clock, peers = SystemClock(), FakePeers()
    await know_keys(accounts, THERE, THERE_KEY)
    async with AsyncExitStack() as stack:
        federation = await stack.enter_async_context(open_federation(settings, [KEY], accounts, clock, world.ids))
        federation = replace(federation, client=cast("FederationClient", peers))
        limits = LocalRateLimits(clock, {SENDER_LIMIT: Rate(0.001, 3)})
        deps = FederationInDeps(
            settings=settings,
            server_name=SERVER,
            clock=clock,
            ids=world.ids,
            accounts=accounts,
            shards=world.shards,
            commands=world.commands,
            bus=world.bus,
            fanout=world.fanout,
            limits=limits,
            federation=federation,
            signing_key=KEY,
            own_policy_server=OwnPolicyServer.of(settings, limits),
        )
        intake = await stack.enter_async_context(open_intake(deps))
        state = {"federation_in": deps, "peers": federation.peers, "transactions": intake.transactions}
        app = create_app(
            routes=list(federation_routes()), routers=list(federation_routers()), state=state, ids=world.ids
        )
        transport = httpx.ASGITransport(app)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="https://here.org"))
        running = [asyncio.create_task(one.run(intake.naming)) for one in (intake.fetcher, intake.checks)]
        yield PeerWorld(world, deps, intake, client, peers)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def know_keys(accounts: Database, server: ServerName, key: SigningKey, until: int = FOR_EVER) -> None:
    """Let the keyring know a server's key without asking it."""
    async with accounts.transaction() as tx:
        await set_server_keys(tx, {server: {key.key_id: ServerKey(key.public_key, until)}})


def resigned(event: Event, server: ServerName, key: SigningKey) -> Event:
    """An event with one more signature."""
    return sign_event(event, server, key)


def path_of(template: str, *parts: str) -> str:
    """A path with its parts encoded."""
    return template.format(*(quote(part, safe="") for part in parts))


def room_path(name: str, room_id: RoomId) -> str:
    return path_of(name + "/{}", room_id)

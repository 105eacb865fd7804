"""The endpoints by which other servers' users come and go, with the real writer behind them; who asks is believed."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx
from foreign_server import KnownKeys
from starlette.requests import Request
from writer_world import KEY, SERVER, World

from matrixcore.canonical_json import encode_canonical_json, parse_exact_json
from matrixcore.event_building import finish_event
from matrixcore.events import Event, parse_event
from matrixcore.identifiers import ServerName
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from services.federation_in import invites, joins, knocks, leaves, third_party_invites
from services.federation_in.dependencies import FederationInDeps
from tessera.clock import SystemClock
from tessera.config import Settings
from tessera.federation.authentication import Peer
from tessera.http.app import create_app
from tessera.http.limits import LocalRateLimits
from tests.fixtures.foreign_room import FAR, FAR_KEY


class BelievedPeers:
    """Whoever says so in the header `origin` asks."""

    @asynccontextmanager
    async def admitted(self, request: Request, **_: Any) -> AsyncIterator[Peer]:
        body = await request.body()
        yield Peer(ServerName(request.headers["origin"]), parse_exact_json(body) if body else {}, body)


@dataclass(slots=True)
class Asking:
    """Requests of another server."""

    http: httpx.AsyncClient
    deps: FederationInDeps

    async def ask(self, method: str, path: str, body: Any = None, *, origin: str = FAR) -> tuple[int, Any]:
        """(status, JSON); the path is below /_matrix/federation."""
        content = None if body is None else encode_canonical_json(body, strict=False)
        reply = await self.http.request(
            method, f"/_matrix/federation{path}", content=content, headers={"origin": origin}
        )
        return reply.status_code, reply.json()

    async def template(self, membership: str, room_id: str, user_id: str, version: str = "11") -> tuple[int, Any]:
        """The answer to make_*."""
        query = "" if membership == "leave" else f"?ver=1&ver={version}"
        return await self.ask("GET", f"/v1/make_{membership}/{room_id}/{user_id}{query}")


def finished(template: Mapping[str, Any], *, key: SigningKey = FAR_KEY, server: ServerName = FAR) -> Event:
    """The event of a template, signed."""
    rules = ROOM_VERSIONS[template["room_version"]]
    fields = dict(template["event"])
    if rules.version in ("1", "2"):
        fields["event_id"] = f"$finished{fields['depth']}:{server}"
    return parse_event(finish_event(fields, rules, server_name=server, signing_key=key).pdu, rules)


@asynccontextmanager
async def letting_in(world: World, client: object = None) -> AsyncIterator[Asking]:
    """The endpoints on the world's shards."""
    accounts, clock = next(iter(world.shards.databases.values())), SystemClock()
    deps = FederationInDeps(
        settings=Settings.for_tests(server_name=SERVER),
        server_name=SERVER,
        clock=clock,
        ids=world.ids,
        accounts=accounts,
        shards=world.shards,
        commands=world.commands,
        bus=world.bus,
        fanout=world.fanout,
        limits=LocalRateLimits(clock, {}),
        federation=cast("Any", SimpleNamespace(keyring=KnownKeys(), client=client)),
        signing_key=KEY,
    )
    routers = [module.router for module in (invites, joins, knocks, leaves, third_party_invites)]
    app = create_app(routes=(), routers=routers, state={"federation_in": deps, "peers": BelievedPeers()}, ids=world.ids)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=f"https://{SERVER}", timeout=30) as http:
        yield Asking(http, deps)

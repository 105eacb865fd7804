"""The gateway's application over a real account store, with a clock that stands still."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from gateway_server import SERVER, RecordingFanout, Server
from oidc_provider import Browser

from matrixcore.identifiers import UserId
from matrixcore.signing import SigningKey
from services.gateway.app import build_gateway, create_gateway_app
from services.gateway.dependencies import GatewayDeps
from services.gateway.passwords import Passwords
from tessera.clock import FakeClock
from tessera.config import Settings, load_appservices
from tessera.http.limits import LocalRateLimits, Rate
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.token_authenticator import TokenAuthenticator


@pytest.fixture
async def browsers() -> AsyncIterator[Callable[[Server], Browser]]:
    """Opens browsers, each with cookies of its own."""
    opened: list[Browser] = []

    def open_browser(server: Server) -> Browser:
        opened.append(Browser(server))
        return opened[-1]

    yield open_browser
    for browser in opened:
        await browser.client.aclose()


@pytest.fixture
async def make_server(accounts: Database) -> AsyncIterator[Callable[..., Server]]:
    """Servers over one account store, each with settings of its own."""
    passwords = Passwords(time_cost=1, memory_kib=8)
    clients: list[httpx.AsyncClient] = []
    gateways: list[GatewayDeps] = []

    def make(rates: dict[str, Rate] | None = None, **overrides: Any) -> Server:
        clock, fanout = FakeClock(), RecordingFanout()
        last_seen = LastSeenRecorder(accounts, clock)
        settings = Settings.for_tests(server_name=SERVER, **overrides)
        gateway = build_gateway(
            settings=settings,
            clock=clock,
            ids=IdSource(),
            accounts=accounts,
            shards=RoomShards({}, {}, 1),
            fanout=fanout,
            commands=cast("RoomCommands", None),
            limits=LocalRateLimits(clock, rates or {}),
            last_seen=last_seen,
            authenticator=TokenAuthenticator(accounts, clock, last_seen, load_appservices(settings)),
            signing_key=cast("SigningKey", None),
            passwords=passwords,
        )
        gateways.append(gateway)
        propagated: list[UserId] = []

        async def propagate(user_id: UserId) -> None:
            propagated.append(user_id)

        gateway = replace(gateway, propagate_profile=propagate)
        transport = httpx.ASGITransport(create_gateway_app(gateway), client=("192.0.2.7", 4711))
        client = httpx.AsyncClient(transport=transport, base_url="http://test.example")
        clients.append(client)
        return Server(gateway, client, clock, fanout, propagated)

    yield make
    for client in clients:
        await client.aclose()
    for gateway in gateways:
        await gateway.calls.close()
    passwords.close()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()

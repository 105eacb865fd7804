"""The gateway's room routes over HTTP, with tokens of the form "user|device"."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from seeded_rooms import KEY, SERVER, SeededRoom
from starlette.requests import Request

from matrixcore.identifiers import UserId
from services.gateway.receipt_batches import ReceiptBatches
from services.gateway.room_changes import RoomChanges
from services.gateway.room_creation import RoomMaker
from services.gateway.room_routes import HOT_ROUTES, room_routers
from tessera.bus import LocalCommandBus
from tessera.clock import FakeClock
from tessera.fanout import LocalFanout
from tessera.http.app import MatrixApp, create_app
from tessera.http.authentication import Requester, access_token_of
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.room_commands import RoomCommands
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards


class TokenIsTheUser:
    """Authenticates everybody as whom the token says."""

    async def authenticate(self, request: Request) -> Requester:
        user_id, _, device = access_token_of(request).partition("|")
        return Requester(UserId(user_id), device)


class Client:
    """One device."""

    def __init__(self, http: httpx.AsyncClient, user_id: UserId, device: str) -> None:
        self._http = http
        self.user_id = user_id
        self._headers = {"Authorization": f"Bearer {user_id}|{device}"}

    async def call(self, method: str, path: str, body: Any = None, *, version: str = "v3", **query: Any) -> Any:
        """(status, JSON) of a request."""
        reply = await self._http.request(
            method, f"/_matrix/client/{version}{path}", json=body, params=query or None, headers=self._headers
        )
        return reply.status_code, reply.json()

    async def get(self, path: str, **query: Any) -> Any:
        """The answer of a GET that succeeds."""
        status, reply = await self.call("GET", path, **query)
        assert status == 200, reply
        return reply

    async def put(self, path: str, body: Any) -> Any:
        """The answer of a PUT that succeeds."""
        status, reply = await self.call("PUT", path, body)
        assert status == 200, reply
        return reply

    async def post(self, path: str, body: Any = None) -> Any:
        """The answer of a POST that succeeds."""
        status, reply = await self.call("POST", path, {} if body is None else body)
        assert status == 200, reply
        return reply

    async def refused(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, str]:
        """(status, errcode) of a request that fails."""
        status, reply = await self.call(method, path, body, **query)
        assert status >= 400, reply
        return status, reply["errcode"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gateway(accounts: Database, shards: RoomShards, clock: FakeClock) -> SimpleNamespace:
    """The dependencies that the room routes use; nobody writes rooms unless a test sees to it."""
    ids, fanout, bus = IdSource.seeded(1), LocalFanout(), LocalCommandBus("topic")
    commands = RoomCommands(bus, fanout, SimpleNamespace())  # type: ignore[arg-type]
    changes = RoomChanges(commands, shards, accounts, fanout, clock, ids)
    return SimpleNamespace(
        settings=SimpleNamespace(default_room_version="12"),
        server_name=SERVER,
        clock=clock,
        ids=ids,
        accounts=accounts,
        shards=shards,
        fanout=fanout,
        bus=bus,
        commands=commands,
        limits=LocalRateLimits(clock, {}),
        receipts=ReceiptBatches(changes),
        rooms=changes,
        room_maker=RoomMaker(changes, SERVER, KEY),
    )


@pytest.fixture
def app(gateway: SimpleNamespace) -> MatrixApp:
    return create_app(
        routes=HOT_ROUTES,
        routers=room_routers(),
        state={"gateway": gateway, "authenticator": TokenIsTheUser()},
        ids=gateway.ids,
    )


@pytest.fixture
async def http(app: MatrixApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here.org") as client:
        yield client


@pytest.fixture
async def room(accounts: Database) -> SeededRoom:
    """A room of Alice's."""
    return await SeededRoom(accounts).create()

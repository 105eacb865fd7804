"""What tests of the gateway's application work with: a server, its clients, a fan-out that remembers."""

from dataclasses import dataclass, field
from typing import Any

import httpx

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway.dependencies import GatewayDeps
from tessera.clock import FakeClock
from tessera.fanout import DeviceWake, LocalFanout, PresenceChange, UserWake
from tessera.storage import user_rooms
from tessera.storage.database import Database
from tessera.storage.user_rooms import MembershipChange

SERVER = "test.example"
API = "/_matrix/client/v3"
PASSWORD = "correct horse"


class RecordingFanout(LocalFanout):
    """Remembers what was published."""

    def __init__(self) -> None:
        super().__init__()
        self.user_wakes: list[UserWake] = []
        self.device_wakes: list[DeviceWake] = []
        self.presence: list[PresenceChange] = []

    async def publish_user_wakes(self, wakes: Any) -> None:
        self.user_wakes += wakes

    async def publish_device_wake(self, wake: DeviceWake) -> None:
        self.device_wakes.append(wake)

    async def publish_presence(self, change: PresenceChange) -> None:
        self.presence.append(change)


@dataclass
class Session:
    """A logged-in device, and requests on its behalf."""

    client: httpx.AsyncClient
    user_id: UserId
    device_id: str
    token: str

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        url = path if path.startswith("/_") else API + path
        options.setdefault("headers", {})["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            options["json"] = body
        return await self.client.request(method, url, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.request("GET", path, **options)

    async def put(self, path: str, body: Any) -> httpx.Response:
        return await self.request("PUT", path, body)

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.request("POST", path, {} if body is None else body)

    async def delete(self, path: str, body: Any = None) -> httpx.Response:
        return await self.request("DELETE", path, body)


@dataclass
class Server:
    """A gateway under test."""

    gateway: GatewayDeps
    client: httpx.AsyncClient
    clock: FakeClock
    fanout: RecordingFanout
    propagated: list[UserId] = field(default_factory=list)

    @property
    def accounts(self) -> Database:
        return self.gateway.accounts

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.client.post(path if path.startswith("/_") else API + path, json=body, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path if path.startswith(("/_", "/.")) else API + path, **options)

    async def register(self, name: str, device_id: str | None = None, **fields: Any) -> Session:
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}, **fields}
        if device_id is not None:
            body["device_id"] = device_id
        return self.session((await self.post("/register", body)).raise_for_status().json())

    async def login(self, name: str, device_id: str | None = None, password: str = PASSWORD, **fields: Any) -> Session:
        response = await self.post("/login", login_body(name, password, device_id, **fields))
        return self.session(response.raise_for_status().json())

    async def join(self, room: str, *sessions: Session, position: int = 1) -> None:
        """Note in the account store that these users are joined."""
        changes = [
            MembershipChange(one.user_id, RoomId(room), "join", EventId("$join"), one.user_id, 0, 1, position)
            for one in sessions
        ]
        async with self.accounts.transaction() as tx:
            await user_rooms.apply_changes(tx, changes)

    def session(self, reply: dict[str, Any]) -> Session:
        return Session(self.client, UserId(reply["user_id"]), reply["device_id"], reply["access_token"])


def login_body(name: str, password: str = PASSWORD, device_id: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": name},
        "password": password,
        **fields,
    }
    return body if device_id is None else {**body, "device_id": device_id}


def password_auth(user_id: str, password: str = PASSWORD, session: str | None = None) -> dict[str, Any]:
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user_id},
        "password": password,
    }
    return auth if session is None else {**auth, "session": session}

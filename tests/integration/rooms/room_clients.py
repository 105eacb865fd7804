"""Clients of the gateway's room routes, with tokens of the form "user|device"."""

from typing import Any

import httpx
from starlette.requests import Request

from matrixcore.identifiers import UserId
from tessera.http.authentication import Requester, access_token_of


class TokenIsTheUser:
    """Authenticates everybody as whom the token says."""

    async def authenticate(self, request: Request) -> Requester:
        user_id, _, device = access_token_of(request).partition("|")
        return Requester(UserId(user_id), device, is_guest=device.startswith("GUEST"), is_admin=device == "ADMIN")


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

"""Somebody who uses a bridged room, by plain requests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp


class BridgedPerson:
    """A person who uses a bridged room."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, login: dict[str, Any]) -> None:
        self.user_id: str = login["user_id"]
        self._session = session
        self._url = f"{base_url}/_matrix/client/v3"
        self._headers = {"Authorization": f"Bearer {login['access_token']}"}
        self._count = 0

    async def call(self, method: str, path: str, body: Any = None, *, status: int = 200, headers: Any = None) -> Any:
        """A request that is answered with this status; the answer."""
        async with self._session.request(
            method, self._url + path, json=body, headers=headers or self._headers
        ) as answer:
            found = await answer.json()
            assert answer.status == status, (method, path, answer.status, found)
            return found

    async def say(self, room_id: str, text: str) -> str:
        """A message; its event's ID."""
        self._count += 1
        path = f"/rooms/{quote(room_id)}/send/m.room.message/{self._count}"
        event_id: str = (await self.call("PUT", path, {"msgtype": "m.text", "body": text}))["event_id"]
        return event_id


@asynccontextmanager
async def bridged_person(base_url: str, name: str) -> AsyncIterator[BridgedPerson]:
    """A new account."""
    async with aiohttp.ClientSession() as session:
        body = {"username": name, "password": "a secret", "auth": {"type": "m.login.dummy"}}
        async with session.post(f"{base_url}/_matrix/client/v3/register", json=body) as answer:
            login = await answer.json()
        yield BridgedPerson(session, base_url, login)

"""What hostile requests are sent to."""

from dataclasses import dataclass
from typing import Any

import httpx

from tessera.http.app import MatrixApp

SERVER = "test.example"
API = "/_matrix/client/v3"
PASSWORD = "correct horse"


@dataclass
class Target:
    """A server, a user of it and what the user made.

    Attributes:
        room, event: one of the user's rooms, and a message in it.
        names: what stands for the parameters of paths and queries when they shall be right.
    """

    client: httpx.AsyncClient
    app: MatrixApp
    token: str
    user_id: str
    device_id: str
    room: str
    event: str

    @classmethod
    async def make(cls, client: httpx.AsyncClient, app: MatrixApp) -> "Target":
        """Register the user, and let them make the room and the message."""
        account = await register(client, "mallory")
        headers = {"Authorization": f"Bearer {account['access_token']}"}
        made = await client.post(f"{API}/createRoom", json={"room_version": "11"}, headers=headers)
        room = made.raise_for_status().json()["room_id"]
        content = {"msgtype": "m.text", "body": "hello"}
        sent = await client.put(f"{API}/rooms/{room}/send/m.room.message/first", json=content, headers=headers)
        event = sent.raise_for_status().json()["event_id"]
        return cls(client, app, account["access_token"], account["user_id"], account["device_id"], room, event)

    @property
    def names(self) -> dict[str, str]:
        return {
            "room": self.room,
            "event": self.event,
            "user": self.user_id,
            "device": self.device_id,
            "server": SERVER,
        }

    async def send(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, token: str | None = ""
    ) -> httpx.Response:
        """One request; `{room}` and the like in the path are filled in.

        Args:
            token: the user's own unless given; None for none.
        """
        url = path if path.startswith("/_") else API + path
        for name, value in self.names.items():
            url = url.replace("{" + name + "}", value)
        token = self.token if token == "" else token
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if raw is not None:
            return await self.client.request(method, url, content=raw, headers=headers)
        if body is not None:
            return await self.client.request(method, url, json=body, headers=headers)
        return await self.client.request(method, url, headers=headers)


async def register(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """A new account, logged in."""
    body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    reply = await client.post(f"{API}/register", json=body)
    account: dict[str, Any] = reply.raise_for_status().json()
    return account


# Of a gateway to other servers, which cannot be reached here.
ANOTHER_SERVERS_FAULT = (502, 504)


def is_clean(response: httpx.Response) -> bool:
    """Whether the law of bad input allows an answer: no 5xx of our own, and an errcode for whatever is refused."""
    if response.status_code >= 500 and response.status_code not in ANOTHER_SERVERS_FAULT:
        return False
    if response.status_code < 400:
        return True
    if response.request.method == "HEAD":
        return True
    if response.headers.get("content-type", "").startswith("text/html"):
        return True  # a page for people, which says it in words
    try:
        body = response.json()
    except ValueError:
        return False
    if not isinstance(body, dict):
        return False
    # A stage of user-interactive authentication is refused without an errcode: it is the form to fill in.
    return isinstance(body.get("errcode"), str) or (response.status_code == 401 and "flows" in body)

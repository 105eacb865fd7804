"""A client of the OAuth 2.0 API, and the browser of the person who uses it."""

import re
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx
from gateway_server import PASSWORD, Server
from oidc_provider import ORIGIN, Browser, query_of

from services.gateway.oauth_server import AUTHORIZE_PATH, DECIDE_PATH, SIGN_IN_PATH
from services.gateway.sso_provider import code_challenge

VERIFIER = "v" * 43
REDIRECT = "https://app.example.org/back"
METADATA = {
    "client_name": "An app",
    "client_uri": "https://example.org/",
    "redirect_uris": [REDIRECT],
    "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
    "token_endpoint_auth_method": "none",
}


def scope_of(device_id: str) -> str:
    return f"urn:matrix:client:api:* urn:matrix:client:device:{device_id}"


def task_of(page: httpx.Response) -> str:
    """The name of the task in a page's forms."""
    names = set(re.findall(r'name="task" value="([^"]+)"', page.text))
    assert len(names) == 1, page.text
    return unescape(names.pop())


@dataclass
class OAuthClient:
    """One that found the endpoints in the metadata."""

    server: Server
    metadata: dict[str, Any]
    client_id: str = ""
    device_id: str = "ABCDEFGHIJ"

    @classmethod
    async def registered(cls, server: Server, **changes: Any) -> "OAuthClient":
        found = await server.get("/_matrix/client/v1/auth_metadata")
        assert found.status_code == 200, found.text
        client = cls(server, found.json())
        reply = await client.post("registration_endpoint", json=METADATA | changes)
        assert reply.status_code == 201, reply.text
        client.client_id = reply.json()["client_id"]
        return client

    async def post(self, endpoint: str, **options: Any) -> httpx.Response:
        path = self.metadata[endpoint].removeprefix(ORIGIN)
        return await self.server.client.post(path, **options)

    def request(self, **changes: str) -> dict[str, str]:
        """The parameters of an authorisation request."""
        return {
            "client_id": self.client_id,
            "redirect_uri": REDIRECT,
            "response_type": "code",
            "response_mode": "query",
            "scope": scope_of(self.device_id),
            "state": "the state",
            "code_challenge": code_challenge(VERIFIER),
            "code_challenge_method": "S256",
            **changes,
        }

    async def code(self, browser: Browser, user: str, password: str = PASSWORD, **changes: str) -> str:
        """A code, from somebody who signs in and agrees."""
        page = await browser.step(AUTHORIZE_PATH, **self.request(**changes))
        page = await sign_in(browser, page, user, password)
        answer = query_of((await decide(browser, page)).headers["Location"])
        assert answer["state"] == "the state"
        return answer["code"]

    async def token(self, **form: str) -> httpx.Response:
        return await self.post("token_endpoint", data={"client_id": self.client_id, **form})

    async def redeem(self, code: str, **changes: str) -> httpx.Response:
        form = {"code": code, "redirect_uri": REDIRECT, "code_verifier": VERIFIER, **changes}
        return await self.token(grant_type="authorization_code", **form)

    async def tokens(self, browser: Browser, user: str) -> dict[str, Any]:
        """The tokens of a whole login."""
        reply = await self.redeem(await self.code(browser, user))
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def whoami(self, token: str) -> httpx.Response:
        return await self.server.get("/account/whoami", headers={"Authorization": f"Bearer {token}"})


async def sign_in(browser: Browser, page: httpx.Response, user: str, password: str = PASSWORD) -> httpx.Response:
    """The page after the one on which somebody signs in."""
    return await browser.post(SIGN_IN_PATH, {"task": task_of(page), "user": user, "password": password})


async def decide(browser: Browser, page: httpx.Response, decision: str = "allow") -> httpx.Response:
    return await browser.post(DECIDE_PATH, {"task": task_of(page), "decision": decision})

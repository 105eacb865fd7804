"""A provider of identities with keys of its own, which can also misbehave; and a browser that goes to it and back."""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
from aiohttp import web
from aiohttp.test_utils import TestServer
from gateway_server import Server
from joserfc import jwt
from joserfc.jwk import RSAKey

from services.gateway.app import create_gateway_app
from services.gateway.sso_provider import code_challenge
from tessera.clock import Clock

CLIENT_ID = "matrix"
SECRET = "hush: & hush"
ORIGIN = "https://test.example"


@dataclass
class Provider:
    """OpenID Connect with RS256 and PKCE. Whoever comes is signed in as `person` at once."""

    clock: Clock
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "7", "preferred_username": "ann", "name": "Ann Lee"})
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": secrets.token_hex(4)}))
    spoil: Callable[[dict[str, Any]], object] = lambda claims: None  # of a token's claims, before they are signed
    userinfo: dict[str, Any] | None = None
    answer_error: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    key_requests: int = 0
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    url: str = ""
    server: TestServer | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_get("/jwks", self._jwks)
        app.router.add_get("/userinfo", self._userinfo)
        self.server = TestServer(app)
        await self.server.start_server()
        self.url = str(self.server.make_url("/")).rstrip("/")

    async def close(self) -> None:
        if self.server is not None:
            await self.server.close()

    def settings(self, idp_id: str = "staff", **changes: Any) -> dict[str, Any]:
        """What a server's file says of it."""
        mapping = {
            "localpart_template": "{{ user.preferred_username }}",
            "display_name_template": "{{ user.name }}",
            "email_template": "{{ user.email }}",
        }
        return {
            "idp_id": idp_id,
            "idp_name": f"Example {idp_id}",
            "issuer": self.url,
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "skip_verification": True,
            "user_mapping_provider": {"config": mapping},
            **changes,
        }

    def rotate(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4)})

    async def _discovery(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/jwks",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "id_token_signing_alg_values_supported": ["RS256", "none"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def _authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        self.asked.append(query)
        back = {"state": query["state"]}
        if self.answer_error is not None:
            back["error"] = self.answer_error
        else:
            back["code"] = secrets.token_hex(8)
            self.codes[back["code"]] = query
        return web.Response(status=302, headers={"Location": f"{query['redirect_uri']}?{urlencode(back)}"})

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = self.codes.pop(str(form.get("code")), None)
        expected = base64.b64encode(b"matrix:hush%3A+%26+hush").decode()
        if request.headers.get("Authorization") != f"Basic {expected}":
            return web.json_response({"error": "invalid_client"}, status=401)
        if (
            asked is None
            or form["redirect_uri"] != asked["redirect_uri"]
            or code_challenge(str(form["code_verifier"])) != asked["code_challenge"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now = self.clock.now_ms() // 1000
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.person,
        }
        self.spoil(claims)
        token = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        return web.json_response({"access_token": "access", "token_type": "Bearer", "id_token": token})

    async def _jwks(self, request: web.Request) -> web.Response:
        self.key_requests += 1
        return web.json_response({"keys": [self.key.as_dict(private=False)]})

    async def _userinfo(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer access":
            return web.json_response({}, status=401)
        return web.json_response(self.person if self.userinfo is None else self.userinfo)


class Browser:
    """Follows redirects between a server and providers, with a cookie jar."""

    def __init__(self, server: Server) -> None:
        app = httpx.ASGITransport(create_gateway_app(server.gateway), client=("192.0.2.7", 4711))
        self.client = httpx.AsyncClient(mounts={ORIGIN: app})
        self.seen: list[str] = []

    async def open(self, path: str, **params: str) -> httpx.Response:
        """Where redirects end: a page, or a redirect to somewhere else, such as a client."""
        url = path if path.startswith("http") else ORIGIN + path
        answer = await self.client.get(url, params=params or None)
        while answer.is_redirect and self._is_known(answer.headers["Location"]):
            self.seen.append(answer.headers["Location"])
            answer = await self.client.get(answer.headers["Location"])
        return answer

    async def step(self, path: str, **params: str) -> httpx.Response:
        """One request, no redirects."""
        return await self.client.get(path if path.startswith("http") else ORIGIN + path, params=params or None)

    async def post(self, path: str, form: dict[str, str]) -> httpx.Response:
        return await self.client.post(ORIGIN + path, data=form)

    @staticmethod
    def _is_known(url: str) -> bool:
        return urlsplit(url).hostname in ("127.0.0.1", "localhost", "test.example")


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))

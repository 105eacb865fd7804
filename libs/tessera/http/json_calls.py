"""Calls of other services that speak JSON: identity servers, a captcha's checker, application services.

Bounded in time and size; no redirects. Addresses that users choose go through the address guard.
"""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import orjson

from tessera.http.address_guard import AddressGuard

MAX_ANSWER_BYTES = 512 << 10
CALL_SECONDS = 10.0
CONNECTIONS = 32


class CallFailed(Exception):
    """No answer, or none that is a JSON object. The text is for logs: it could tell of our network."""


class JsonCaller:
    """Posts and gets JSON objects. Close it at the end.

    Args:
        guard: refuses addresses of inner networks; None where the operator named the URL.
        tls: who is trusted; the system's authorities unless it is given.
    """

    def __init__(self, guard: AddressGuard | None, *, tls: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def post(
        self, url: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status and the object that answer a JSON body. Raises CallFailed."""
        return await self._call(
            "POST", url, {**(headers or {}), "Content-Type": "application/json"}, orjson.dumps(body), None
        )

    async def put(
        self, url: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The same with PUT and a body that is JSON already. Raises CallFailed."""
        return await self._call("PUT", url, {**(headers or {}), "Content-Type": "application/json"}, body, None)

    async def post_form(
        self, url: str, fields: Mapping[str, str], *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The same for the fields of a form. Raises CallFailed."""
        form = {**(headers or {}), "Content-Type": "application/x-www-form-urlencoded"}
        return await self._call("POST", url, form, urlencode(fields).encode(), None)

    async def get(
        self, url: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The same for a GET. Raises CallFailed."""
        return await self._call("GET", url, headers or {}, None, params)

    async def _call(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, params: Mapping[str, str] | None
    ) -> tuple[int, dict[str, Any]]:
        _check_url(url)
        try:
            async with self._opened().request(
                method, url, headers=headers, data=body, params=params, allow_redirects=False
            ) as response:
                content = bytearray()
                async for piece in response.content.iter_chunked(16_384):
                    content += piece
                    if len(content) > MAX_ANSWER_BYTES:
                        raise CallFailed("the answer is too long")
                answer = orjson.loads(content or b"{}")
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise CallFailed(type(error).__name__) from error
        if not isinstance(answer, dict):
            raise CallFailed("no JSON object")
        return status, answer

    def _opened(self) -> aiohttp.ClientSession:
        # Made at the first call: a session belongs to the loop that runs.
        if self._session is None:
            guard = self._guard
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._tls or True,
                    limit=CONNECTIONS,
                    force_close=True,
                    use_dns_cache=False,
                    socket_factory=None if guard is None else guard.open_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
                trust_env=False,
                headers={"User-Agent": "Tessera (Matrix homeserver)"},
            )
        return self._session


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_web = False
    if not is_web or not url.isprintable():
        raise CallFailed("no URL")

"""Requests to application services: bounded in time and bytes, no redirects.

The operator named the URLs in registration files, so that they may lie in the server's own network.

Spec: Application Service API §Homeserver -> Application Service API.
"""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from tessera.appservices import Registration
from tessera.clock import Clock

SEND_SECONDS = 60.0
ASK_SECONDS = 15.0
CONNECT_SECONDS = 10.0
MAX_TAKEN_BYTES = 64 << 10  # of the answer to a transaction, which says nothing
MAX_ANSWER_BYTES = 512 << 10
MAX_RETRY_AFTER_SECONDS = 300.0
LEGACY_SECONDS = 3_600.0  # how long a service is taken for an old one
# What a service answers that does not know a path; the older one is tried then.
UNKNOWN_PATH = frozenset((404, 405, 501))

_APP = "/_matrix/app/v1"


class AppServiceFailed(Exception):
    """No answer, or not one that was hoped for.

    Attributes:
        status: of the answer; None if there was none.
        retry_after: seconds that it asks for.
    """

    def __init__(self, reason: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after


class AppServiceClient:
    """Calls application services under their hs_tokens. Close it at the end.

    Args:
        connections: at most, to all services together.
    """

    def __init__(self, clock: Clock, *, connections: int) -> None:
        self._clock = clock
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._legacy_until: dict[str, float] = {}  # by service

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send_transaction(self, service: Registration, txn_id: str, body: bytes) -> None:
        """Send a transaction; whatever a service answers with a good status, it has taken it.

        Raises:
            AppServiceFailed: it is to be sent again later.
        """
        status, retry_after = 0, 0.0
        for path in self._paths(service, f"{_APP}/transactions/", "/transactions/"):
            url = _url(service, path + quote(txn_id, safe=""))
            status, retry_after, answer = await self._call("PUT", service, url, body, SEND_SECONDS, MAX_TAKEN_BYTES)
            if 200 <= status < 300:
                self._note(service, is_legacy=not path.startswith(_APP))
                return
            if not _is_unknown_path(status, answer):
                break
        raise AppServiceFailed(f"status {status}", status, retry_after)

    async def knows_user(self, service: Registration, user_id: str) -> bool:
        """Whether the service has made a user, now that it was asked. Raises AppServiceFailed."""
        return await self._knows(service, "/users/", user_id)

    async def knows_alias(self, service: Registration, alias: str) -> bool:
        """Whether the service has made a room for an alias. Raises AppServiceFailed."""
        return await self._knows(service, "/rooms/", alias)

    async def ask_third_party(self, service: Registration, path: str, query: Mapping[str, str]) -> Any:
        """What a service says of its networks; None if it has nothing to say.

        Args:
            path: below /thirdparty/, each segment quoted.

        Raises:
            AppServiceFailed
        """
        status = 0
        for begin in self._paths(service, f"{_APP}/thirdparty/", "/_matrix/app/unstable/thirdparty/"):
            url = _url(service, begin + path).update_query(query)
            status, _, answer = await self._call("GET", service, url, None, ASK_SECONDS, MAX_ANSWER_BYTES)
            if status == 200:
                try:
                    return orjson.loads(answer)
                except orjson.JSONDecodeError as error:
                    raise AppServiceFailed("the answer is no JSON") from error
            if status == 404:
                if not _is_unknown_path(status, answer):
                    return None
            elif status not in UNKNOWN_PATH:
                raise AppServiceFailed(f"status {status}", status)
        return None

    async def _knows(self, service: Registration, path: str, name: str) -> bool:
        for begin in self._paths(service, _APP + path, path):
            url = _url(service, begin + quote(name, safe=""))
            status, _, answer = await self._call("GET", service, url, None, ASK_SECONDS, MAX_TAKEN_BYTES)
            if 200 <= status < 300:
                return True
            if status == 404:
                if not _is_unknown_path(status, answer):
                    return False
            elif status not in UNKNOWN_PATH:
                raise AppServiceFailed(f"status {status}", status)
        return False

    def _paths(self, service: Registration, path: str, older: str) -> tuple[str, ...]:
        """The paths to try, in order."""
        is_legacy = self._legacy_until.get(service.service_id, 0.0) > self._clock.monotonic()
        return (older, path) if is_legacy else (path, older)

    def _note(self, service: Registration, *, is_legacy: bool) -> None:
        if is_legacy:
            now = self._clock.monotonic()
            # What is known already ends when it was to: the newer path is tried again then.
            if self._legacy_until.get(service.service_id, 0.0) <= now:
                self._legacy_until[service.service_id] = now + LEGACY_SECONDS
        else:
            self._legacy_until.pop(service.service_id, None)

    async def _call(
        self, method: str, service: Registration, url: URL, body: bytes | None, seconds: float, max_bytes: int
    ) -> tuple[int, float, bytes]:
        """(status, Retry-After, body). Raises AppServiceFailed."""
        headers = {"Authorization": f"Bearer {service.hs_token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if not url.path.startswith("/_matrix/") and "/_matrix/" not in url.path:
            url = url.update_query({"access_token": service.hs_token})  # services of that age look there
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._opened().request(method, url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                async for piece in response.content.iter_chunked(16_384):
                    answer += piece
                    if len(answer) > max_bytes:
                        raise AppServiceFailed("the answer is too long")
                return response.status, _retry_after(response), bytes(answer)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise AppServiceFailed(type(error).__name__) from error

    def _opened(self) -> aiohttp.ClientSession:
        # Made at the first call: a session belongs to the loop that runs.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, use_dns_cache=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                trust_env=False,
                headers={"User-Agent": "Tessera (Matrix homeserver)", "Accept-Encoding": "identity"},
            )
        return self._session


def _url(service: Registration, path: str) -> URL:
    if service.url is None:
        raise AppServiceFailed("the service has no URL")
    try:
        return URL(service.url + path, encoded=True)
    except ValueError as error:
        raise AppServiceFailed("no URL") from error


def _is_unknown_path(status: int, answer: bytes) -> bool:
    """Whether a service does not know a path; a 404 in JSON with no or another error code says that it does."""
    if status != 404:
        return status in UNKNOWN_PATH
    try:
        error = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return True
    return not isinstance(error, dict) or error.get("errcode") == "M_UNRECOGNIZED"


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0

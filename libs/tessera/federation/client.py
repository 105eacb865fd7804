"""Asking other servers.

Spec: S-S API §Request Authentication, §TLS.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from yarl import URL

from matrixcore.canonical_json import InvalidJson, encode_canonical_json, parse_exact_json
from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from matrixcore.signing import SigningKey
from tessera.federation.connections import PeerConnections
from tessera.federation.discovery import Discovery, Target
from tessera.federation.errors import PeerAnsweredBadly, PeerDenied, PeerRefused, PeerUnreachable
from tessera.federation.policy import FederationPolicy

JsonObject = dict[str, Any]
Query = Mapping[str, str | Sequence[str]]

TIMEOUT_SECONDS = 30.0
MAX_ANSWER_BYTES = 16 << 20
MAX_REFUSAL_BYTES = 64 << 10
CHUNK_BYTES = 64 << 10
_NO_QUERY: Query = {}


def endpoint(template: str, *parts: str) -> str:
    """A path with parts that are percent-encoded: `endpoint("/_matrix/federation/v1/event/{}", event_id)`."""
    return template.format(*(quote(part, safe="") for part in parts))


@dataclass(frozen=True, slots=True)
class PeerStream:
    """A success whose body has not been read yet.

    Attributes:
        headers: names in any case.
    """

    headers: Mapping[str, str]
    _response: aiohttp.ClientResponse
    _max_bytes: int

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces of at most CHUNK_BYTES.

        Raises:
            PeerAnsweredBadly: it is too long, or breaks off.
        """
        left = self._max_bytes
        try:
            async for piece in self._response.content.iter_chunked(CHUNK_BYTES):
                left -= len(piece)
                if left < 0:
                    raise PeerAnsweredBadly(f"longer than {self._max_bytes} bytes")
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise PeerAnsweredBadly(f"broke off: {_reason(error)}") from error

    async def read(self) -> bytes:
        """The whole body. Raises as `chunks`."""
        pieces = [piece async for piece in self.chunks()]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class FederationClient:
    """Asks other servers on behalf of ours: every request is signed and its answer bounded.

    Paths are percent-encoded already (`endpoint`). Times are of the whole request, discovery included.
    All methods raise PeerUnreachable, PeerRefused or PeerAnsweredBadly, and no other error of the network.
    """

    def __init__(
        self,
        server_name: ServerName,
        signing_key: SigningKey,
        connections: PeerConnections,
        discovery: Discovery,
        policy: FederationPolicy,
    ) -> None:
        self._server_name = server_name
        self._signing_key = signing_key
        self._connections = connections
        self._discovery = discovery
        self._policy = policy

    @property
    def policy(self) -> FederationPolicy:
        """With whom this server talks."""
        return self._policy

    async def get(
        self,
        server: str,
        path: str,
        query: Query = _NO_QUERY,
        *,
        timeout_s: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> JsonObject:
        """GET a JSON object."""
        return await self._ask("GET", server, path, query, None, timeout_s, max_bytes)

    async def put(
        self,
        server: str,
        path: str,
        body: Mapping[str, Any] | bytes,
        query: Query = _NO_QUERY,
        *,
        timeout_s: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> JsonObject:
        """PUT a JSON object; bytes are canonical JSON already."""
        return await self._ask("PUT", server, path, query, body, timeout_s, max_bytes)

    async def post(
        self,
        server: str,
        path: str,
        body: Mapping[str, Any] | bytes,
        query: Query = _NO_QUERY,
        *,
        timeout_s: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> JsonObject:
        """POST a JSON object; bytes are canonical JSON already."""
        return await self._ask("POST", server, path, query, body, timeout_s, max_bytes)

    async def get_bytes(
        self,
        server: str,
        path: str,
        query: Query = _NO_QUERY,
        *,
        timeout_s: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> tuple[str, bytes]:
        """GET anything: (Content-Type, body)."""
        async with self.stream(server, path, query, timeout_s=timeout_s, max_bytes=max_bytes) as answer:
            return answer.headers.get("Content-Type", ""), await answer.read()

    @asynccontextmanager
    async def stream(
        self,
        server: str,
        path: str,
        query: Query = _NO_QUERY,
        *,
        timeout_s: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> AsyncIterator[PeerStream]:
        """GET something long, for media. The time covers the block."""
        async with self._request("GET", server, path, query, None, timeout_s) as response:
            yield PeerStream(response.headers, response, max_bytes)

    @asynccontextmanager
    async def stream_put(
        self,
        server: str,
        path: str,
        body: Mapping[str, Any] | bytes,
        query: Query = _NO_QUERY,
        *,
        timeout_s: float = TIMEOUT_SECONDS,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> AsyncIterator[PeerStream]:
        """PUT a JSON object whose answer is long, as that of send_join. The time covers the block."""
        async with self._request("PUT", server, path, query, body, timeout_s) as response:
            yield PeerStream(response.headers, response, max_bytes)

    @asynccontextmanager
    async def stream_url(self, url: str, *, timeout_s: float, max_bytes: int) -> AsyncIterator[PeerStream]:
        """GET an https URL that a peer has named in place of a body; not signed, guarded like the rest."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise PeerAnsweredBadly("redirected to no https URL")
        try:
            host = parse_server_name(parts.netloc.rpartition("@")[2])
            async with asyncio.timeout(timeout_s):
                context = self._connections.tls.context_for(host)
                async with _answered(self._connections.request("GET", url, ssl=context)) as reply:
                    yield PeerStream(reply.headers, reply, max_bytes)
        except InvalidIdentifier as error:
            raise PeerAnsweredBadly("redirected to no host") from error
        except TimeoutError as error:
            raise PeerUnreachable(f"{url} did not answer in {timeout_s:g} s") from error

    async def _ask(
        self,
        method: str,
        server: str,
        path: str,
        query: Query,
        body: Mapping[str, Any] | bytes | None,
        timeout_s: float,
        max_bytes: int,
    ) -> JsonObject:
        async with self._request(method, server, path, query, body, timeout_s) as response:
            content = await PeerStream(response.headers, response, max_bytes).read()
        try:
            parsed = parse_exact_json(content)
        except InvalidJson as error:
            raise PeerAnsweredBadly(f"no JSON: {error}") from error
        if type(parsed) is not dict:
            raise PeerAnsweredBadly("no JSON object")
        return parsed

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        server: str,
        path: str,
        query: Query,
        body: Mapping[str, Any] | bytes | None,
        timeout_s: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            name = parse_server_name(server)
        except InvalidIdentifier as error:
            raise PeerUnreachable(f"not a server: {error}") from error
        if not self._policy.allows(name):
            raise PeerDenied(f"no federation with {name}")
        target = f"{path}?{urlencode(query, doseq=True)}" if query else path
        content = encode_canonical_json(body, strict=False) if isinstance(body, Mapping) else body
        headers = {"Authorization": self._authorization(method, name, target, content)}
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._connect(method, name, target, headers, content)
                async with _answered(response) as checked:
                    yield checked
        except TimeoutError as error:
            raise PeerUnreachable(f"{name} did not answer in {timeout_s:g} s") from error

    async def _connect(
        self, method: str, server: ServerName, target: str, headers: Mapping[str, str], content: bytes | None
    ) -> aiohttp.ClientResponse:
        """The answer of the first place where anybody takes a connection."""
        context = self._connections.tls.context_for(server)
        trouble: Exception | None = None
        for place in await self._discovery.find(server):
            try:
                return await self._connections.request(
                    method,
                    _url(place, target),
                    headers={"Host": place.host_header, **headers},
                    data=content,
                    ssl=context,
                    server_hostname=place.tls_name,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
                trouble = error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise PeerUnreachable(f"{server}: {_reason(error)}") from error
        raise PeerUnreachable(f"{server}: {_reason(trouble)}") from trouble

    def _authorization(self, method: str, server: ServerName, target: str, content: bytes | None) -> str:
        named = {"destination": server, "method": method, "origin": self._server_name, "uri": target}
        message = encode_canonical_json(named)
        if content is not None:  # "content" comes first in canonical order, and its bytes are canonical already
            message = b'{"content":' + content + b"," + message[1:]
        signature = self._signing_key.sign(message)
        key_id = self._signing_key.key_id
        return f'X-Matrix origin="{self._server_name}",destination="{server}",key="{key_id}",sig="{signature}"'


@asynccontextmanager
async def _answered(
    response: aiohttp.ClientResponse | Coroutine[Any, Any, aiohttp.ClientResponse],
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A success, released at the end.

    Raises:
        PeerRefused: it is none. PeerUnreachable
    """
    if not isinstance(response, aiohttp.ClientResponse):
        try:
            response = await response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerUnreachable(_reason(error)) from error
    try:
        if response.status // 100 != 2:
            raise await _refusal(response)
        yield response
        # Read to its end, the connection may serve again.
        if response.content.at_eof():
            response.release()
    finally:
        response.close()


async def _refusal(response: aiohttp.ClientResponse) -> PeerRefused:
    errcode, message, retry_after_ms = "M_UNKNOWN", "", None
    try:
        content = await PeerStream(response.headers, response, MAX_REFUSAL_BYTES).read()
        parsed = parse_exact_json(content)
        response.release()
    except (PeerAnsweredBadly, InvalidJson):
        parsed = None
    if isinstance(parsed, dict):
        errcode = _short(parsed.get("errcode")) or errcode
        message = _short(parsed.get("error"))
        wait = parsed.get("retry_after_ms")
        retry_after_ms = wait if type(wait) is int and 0 <= wait < 2**53 else None
    after = response.headers.get("Retry-After", "")
    if after.isascii() and after.isdigit() and len(after) < 10:
        retry_after_ms = int(after) * 1000
    return PeerRefused(response.status, errcode, message, retry_after_ms)


def _url(place: Target, target: str) -> URL:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return URL(f"https://{host}:{place.port}{target}", encoded=True)


def _short(value: object) -> str:
    return value[:500] if isinstance(value, str) else ""


def _reason(error: BaseException | None) -> str:
    """Why, in one line."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not believed: {error.verify_message}"
    return " ".join(str(error).split()) or type(error).__name__

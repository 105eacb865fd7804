"""Fetching what a link leads to: bounded in time, bytes and redirects, and never from the inner network.

Spec: C-S API GET /media/preview_url.
"""

import re
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp

from tessera.config.values import Network
from tessera.http.address_guard import AddressGuard

MAX_REDIRECTS = 5
MAX_URL_LENGTH = 4_096
CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0  # without a byte
REDIRECTS = frozenset((301, 302, 303, 307, 308))


class Unfetchable(Exception):
    """Not an address that is fetched, or nothing came from there. Why is for the log: it could tell of our network."""


class ForbiddenUrl(Exception):
    """The operator wants no previews of this address."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer whose body has not been read yet.

    Attributes:
        url: after redirects.
        content_type: in small letters, without parameters.
    """

    url: str
    content_type: str
    charset: str | None
    response: aiohttp.ClientResponse

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces of at most CHUNK_BYTES, unpacked; whoever reads bounds the sum.

        Raises:
            Unfetchable: it is packed otherwise than we asked for, or broken.
        """
        packing = self.response.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise Unfetchable(f"packed as {packing}")
        unpacker = None if packing in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        try:
            async for piece in self.response.content.iter_chunked(CHUNK_BYTES):
                if unpacker is None:
                    yield piece
                    continue
                unpacked = unpacker.decompress(piece, CHUNK_BYTES)
                yield unpacked
                while unpacked:
                    unpacked = unpacker.decompress(unpacker.unconsumed_tail, CHUNK_BYTES)
                    yield unpacked
        except (zlib.error, aiohttp.ClientError, OSError) as error:
            raise Unfetchable(type(error).__name__) from error

    async def read_up_to(self, limit_bytes: int) -> bytes:
        """The beginning of the body."""
        content = bytearray()
        async for piece in self.chunks():
            content += piece
            if len(content) >= limit_bytes:
                break
        return bytes(content[:limit_bytes])


class PageFetcher:
    """Fetches over HTTP. Close it at the end.

    Args:
        blocked, allowed: networks, as `AddressGuard` takes them.
        forbidden: rules against URLs: part -> glob, or a regular expression if it begins with "^".
        languages: for Accept-Language.
    """

    def __init__(
        self,
        *,
        blocked: Sequence[Network],
        allowed: Sequence[Network],
        forbidden: Sequence[Mapping[str, str]],
        languages: Sequence[str],
        connections: int,
    ) -> None:
        guard = AddressGuard(blocked, allowed)
        self._forbidden = tuple(forbidden)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, force_close=True, use_dns_cache=False, socket_factory=guard.open_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            auto_decompress=False,  # a small packed piece could become a gigabyte
            trust_env=False,
            headers={
                "User-Agent": "Tessera (Matrix homeserver; link previews)",
                "Accept": "text/html, application/xhtml+xml, image/*;q=0.9, */*;q=0.5",
                "Accept-Encoding": "identity",
                "Accept-Language": ", ".join(languages) or "*",
            },
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def check(self, url: str) -> str:
        """The URL, if it is one that may be fetched.

        Raises:
            Unfetchable: not a URL of the web. ForbiddenUrl
        """
        try:
            parts = urlsplit(url)
            is_web = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            raise Unfetchable("no URL") from None
        if not is_web or len(url) > MAX_URL_LENGTH or not url.isprintable():
            raise Unfetchable("no URL of the web")
        if any(_fits(rule, parts) for rule in self._forbidden):
            raise ForbiddenUrl
        return url

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Fetched]:
        """What a URL leads to, after redirects; each step is checked like the first.

        Raises:
            Unfetchable, ForbiddenUrl
        """
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = await self._session.get(self.check(url), allow_redirects=False)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                raise Unfetchable(type(error).__name__) from error
            try:
                if response.status in REDIRECTS and "Location" in response.headers:
                    url = _joined(url, response.headers["Location"])
                    continue
                if response.status != 200:
                    raise Unfetchable(f"status {response.status}")
                content_type, charset = _content_type_of(response)
                yield Fetched(url, content_type, charset, response)
                return
            finally:
                response.close()
        raise Unfetchable("too many redirects")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise Unfetchable("redirected to no URL") from None


def _content_type_of(response: aiohttp.ClientResponse) -> tuple[str, str | None]:
    message = Message()
    message["Content-Type"] = response.headers.get("Content-Type", "application/octet-stream")
    return message.get_content_type(), message.get_content_charset()


def _fits(rule: Mapping[str, str], parts: SplitResult) -> bool:
    """Whether every part that a rule names is there and matches."""
    for name, pattern in rule.items():
        value = getattr(parts, name)
        if value is None:
            return False
        if pattern.startswith("^"):
            if re.match(pattern, str(value)) is None:
                return False
        elif not fnmatchcase(str(value).lower(), pattern.lower()):
            return False
    return True

"""/.well-known/matrix/server of other servers: asked for, bounded, remembered.

Spec: S-S API §Resolving server names, step 3.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.federation.connections import PeerConnections
from tessera.federation.server_names import split_server_name

PATH = "/.well-known/matrix/server"
MAX_BYTES = 50 * 1024
MAX_REDIRECTS = 5
MAX_NAMES = 20_000
MAX_AT_ONCE = 100
FETCH_SECONDS = 20.0
HOUR = 3_600.0
DEFAULT_SECONDS, MIN_SECONDS, MAX_SECONDS = 24 * HOUR, 300.0, 48 * HOUR
FIRST_ERROR_SECONDS, MAX_ERROR_SECONDS = 60.0, HOUR
JITTER = 0.1  # so that what was learned at once is not asked for again at once

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?([0-9]{1,12})", re.IGNORECASE)
_NO_STORE = re.compile(r"(?:^|,)\s*no-(?:store|cache)\b", re.IGNORECASE)


class Invalid(Exception):
    """There is an answer, and it is none that counts."""


class NoAnswer(Exception):
    """There is none, this time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A well-known file.

    Attributes:
        delegated: `m.server`.
        max_age_seconds: what its headers say; None if they say nothing.
    """

    delegated: ServerName
    max_age_seconds: float | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a server, until `good_until`.

    Attributes:
        delegated: None if it has no such file.
        usable_until: for a name that outlives the failure to ask again.
        failures: in a row.
    """

    delegated: ServerName | None
    good_until: float
    usable_until: float = 0.0
    failures: int = 0


class WellKnown:
    """The files of all servers that were asked for.

    Args:
        randomness: a number in [0, 1).
    """

    def __init__(self, connections: PeerConnections, clock: Clock, randomness: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._randomness = randomness
        self._known: BoundedCache[ServerName, _Known] = BoundedCache(MAX_NAMES)
        self._asking: dict[ServerName, asyncio.Task[ServerName | None]] = {}
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def find(self, server: ServerName) -> ServerName | None:
        """Whom a server delegates to; None if it does not say.

        Args:
            server: a name without a port, and no address.
        """
        known = self._known.get(server)
        if known is not None and self._clock.monotonic() < known.good_until:
            return known.delegated
        task = self._asking.get(server)
        if task is None:
            # A task of its own: whoever asked first may go away while others wait for the same answer.
            task = asyncio.create_task(self._ask(server, known))
            self._asking[server] = task
            task.add_done_callback(lambda _: self._asking.pop(server, None))
        return await asyncio.shield(task)

    async def fetch(self, server: ServerName) -> Answer:
        """The file as it is now; nothing is remembered.

        Raises:
            Invalid, NoAnswer
        """
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._fetch(server)
        except TimeoutError as error:
            raise NoAnswer("not in time") from error

    async def _ask(self, server: ServerName, before: _Known | None) -> ServerName | None:
        async with self._slots:
            try:
                answer = await self.fetch(server)
            except (Invalid, NoAnswer) as error:
                known = self._after_failure(before, was_answered=isinstance(error, Invalid))
            else:
                now = self._clock.monotonic()
                age = DEFAULT_SECONDS if answer.max_age_seconds is None else answer.max_age_seconds
                age = min(max(age, MIN_SECONDS), MAX_SECONDS) * (1 - JITTER * self._randomness())
                known = _Known(answer.delegated, now + age, now + MAX_SECONDS)
        self._known[server] = known
        return known.delegated

    def _after_failure(self, before: _Known | None, *, was_answered: bool) -> _Known:
        now = self._clock.monotonic()
        failures = 1 if before is None else before.failures + 1
        wait = min(FIRST_ERROR_SECONDS * 2.0 ** min(failures - 1, 10), MAX_ERROR_SECONDS)
        good_until = now + wait * (1 - JITTER * self._randomness())
        if before is not None and not was_answered and now < before.usable_until:
            # A web server that is away for a while has not changed its mind.
            return _Known(before.delegated, good_until, before.usable_until, failures)
        return _Known(None, good_until, 0.0, failures)

    async def _fetch(self, server: ServerName) -> Answer:
        url = f"https://{server}{PATH}"
        context = self._connections.tls.context_for(server)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = await self._connections.request("GET", url, ssl=context)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise NoAnswer(f"{type(error).__name__}: {error}") from error
            try:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    url = _redirected(url, response.headers["Location"])
                    continue
                if response.status >= 500:
                    raise NoAnswer(f"status {response.status}")
                if response.status != 200:
                    raise Invalid(f"status {response.status}")
                return Answer(_delegated(await _read(response)), self._max_age(response))
            finally:
                response.close()
        raise Invalid("too many redirects")

    def _max_age(self, response: aiohttp.ClientResponse) -> float | None:
        control = response.headers.get("Cache-Control", "")
        if _NO_STORE.search(control):
            return 0.0
        if (match := _MAX_AGE.search(control)) is not None:
            return float(match[1])
        if "Expires" in response.headers:
            try:
                expires = parsedate_to_datetime(response.headers["Expires"]).timestamp()
            except (ValueError, TypeError, OverflowError):
                return 0.0  # RFC 9111: an invalid date has passed
            return max(0.0, expires - self._clock.now_ms() / 1000)
        return None


def _redirected(url: str, location: str) -> str:
    try:
        found = urljoin(url, location)
        if urlsplit(found).scheme == "https":
            return found
    except ValueError:
        pass
    raise Invalid("redirected to no https URL")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    try:
        async for piece in response.content.iter_chunked(16 * 1024):
            content += piece
            if len(content) > MAX_BYTES:
                raise Invalid(f"longer than {MAX_BYTES} bytes")
    except (aiohttp.ClientError, OSError) as error:
        raise NoAnswer(type(error).__name__) from error
    return bytes(content)


def _delegated(content: bytes) -> ServerName:
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise Invalid("no JSON") from error
    if not isinstance(parsed, dict):
        raise Invalid("no JSON object")
    try:
        delegated = parse_server_name(parsed.get("m.server"))
        split_server_name(delegated)
    except InvalidIdentifier as error:
        raise Invalid(f"m.server: {error}") from error
    return delegated

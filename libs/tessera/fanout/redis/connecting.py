"""Connections to Redis or Valkey, or to the master that Sentinel names.

redis-py opens them (TLS, authentication, database); above that there are only packed commands out and replies in, so
that many publishers share one round trip.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

import structlog
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError, ResponseError

from tessera.clock import Clock
from tessera.config import RedisSettings
from tessera.ids import IdSource

log = structlog.get_logger(__name__)

FIRST_DELAY_SECONDS = 0.05
LAST_DELAY_SECONDS = 2.0
_ERRORS = (RedisError, OSError, TimeoutError, EOFError)


class RedisUnavailable(Exception):
    """Redis cannot be reached, or did not answer in time; nothing but hints is lost."""


def pack(*parts: str | bytes | int) -> bytes:
    """A command as it goes over the wire."""
    packed: bytes = pack_command(parts)  # type: ignore[arg-type]  # its stub knows only tuples of one part
    return packed


class Link:
    """One open connection. Every failure is a RedisUnavailable; the link is of no use after it."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def write(self, packed: Sequence[bytes]) -> None:
        """Hand packed commands to the socket, waiting while its buffer is full."""
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except _ERRORS as error:
            raise RedisUnavailable(_describe(error)) from error

    async def read(self) -> Any:
        """The next reply: bytes, int, None, a list of such, or the ResponseError that Redis answered."""
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error
        except _ERRORS as error:
            raise RedisUnavailable(_describe(error)) from error

    async def ask(self, *parts: str | bytes | int) -> Any:
        """One command and its reply.

        Raises:
            RedisUnavailable: also when Redis refuses.
        """
        await self.write([pack(*parts)])
        reply = await self.read()
        if isinstance(reply, ResponseError):
            raise RedisUnavailable(str(reply))
        return reply

    async def close(self) -> None:
        """Close without waiting for the other side."""
        with suppress(*_ERRORS):  # it may be broken already
            await self._connection.disconnect(nowait=True)


class Connector:
    """Opens links to the configured server."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._address = settings.address
        self._seconds = settings.connect_timeout / 1000

    async def connect(self, name: str) -> Link:
        """A new link; `name` is what CLIENT LIST shows.

        Raises:
            RedisUnavailable
        """
        if not self._address.service:
            return await self._open(self._address.hosts[0] if self._address.hosts else ("", 0), name)
        link = await self._open(await self._find_master(), name)
        try:
            async with asyncio.timeout(self._seconds):
                role = await link.ask("ROLE")
        except TimeoutError as error:
            await link.close()
            raise RedisUnavailable("no answer to ROLE") from error
        except BaseException:
            await link.close()
            raise
        # Between a failover and the Sentinels' knowledge of it, they may name a server that is no master any more.
        if role[0] != b"master":
            await link.close()
            raise RedisUnavailable("the server that Sentinel names is not the master")
        return link

    async def _find_master(self) -> tuple[str, int]:
        reason = ""
        for host in self._address.hosts:
            try:
                link = await self._open(host, "", to_sentinel=True)
                try:
                    async with asyncio.timeout(self._seconds):
                        found = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
                finally:
                    await link.close()
            except (RedisUnavailable, TimeoutError) as error:
                reason = _describe(error)
                continue
            if found is not None:
                return found[0].decode(), int(found[1])
            reason = "unknown master"
        raise RedisUnavailable(f"no Sentinel names {self._address.service}: {reason}")

    async def _open(self, host: tuple[str, int], name: str, *, to_sentinel: bool = False) -> Link:
        connection = self._new_connection(host, name, to_sentinel=to_sentinel)
        try:
            async with asyncio.timeout(self._seconds):
                await connection.connect()  # type: ignore[no-untyped-call]  # untyped in redis
        except BaseException as error:
            await Link(connection).close()
            if isinstance(error, _ERRORS):
                raise RedisUnavailable(_describe(error)) from error
            raise
        return Link(connection)

    def _new_connection(self, host: tuple[str, int], name: str, *, to_sentinel: bool) -> AbstractConnection:
        settings, address = self._settings, self._address
        password = settings.sentinel_password if to_sentinel else settings.password
        username = settings.sentinel_username if to_sentinel else settings.username or address.username
        word = None if password is None else password.get_secret_value()
        options: dict[str, Any] = {
            "db": 0 if to_sentinel else address.database,
            "username": username,
            "password": word if word is not None or to_sentinel else address.password,
            "client_name": name or None,
            "driver_info": None,
            "protocol": 2,
            "socket_timeout": None,  # each wait here has a time-out of its own
            "socket_connect_timeout": self._seconds,
        }
        if address.socket is not None:
            return UnixDomainSocketConnection(path=str(address.socket), **options)
        options |= {"host": host[0], "port": host[1]}
        if not address.tls:
            return Connection(**options)
        ca = settings.tls_ca_path
        return SSLConnection(ssl_ca_certs=None if ca is None else str(ca), **options)


class BackOff:
    """Waits between attempts: doubling, with jitter, never long, since a late return costs only a quick try."""

    def __init__(self, clock: Clock, ids: IdSource) -> None:
        self._clock = clock
        self._ids = ids
        self._delay = FIRST_DELAY_SECONDS

    def reset(self) -> None:
        """An attempt succeeded."""
        self._delay = FIRST_DELAY_SECONDS

    async def wait(self) -> None:
        """Wait before the next attempt."""
        await self._clock.sleep(self._delay * (0.5 + self._ids.fraction()))
        self._delay = min(self._delay * 2, LAST_DELAY_SECONDS)


async def links(
    connector: Connector, name: str, back_off: BackOff, first_attempt: asyncio.Event
) -> AsyncGenerator[Link, None]:
    """One link after another, for ever; whoever takes one closes it before asking for the next.

    Args:
        first_attempt: set when the first one cannot be had.
    """
    last_reason = ""
    while True:
        try:
            link = await connector.connect(name)
        except RedisUnavailable as error:
            if str(error) != last_reason:
                log.warning("Redis cannot be reached", error=str(error), connection=name)
            last_reason = str(error)
            first_attempt.set()
        except Exception:  # a server that is no Redis may answer anything
            log.exception("Redis cannot be understood", connection=name)
            first_attempt.set()
        else:
            last_reason = ""
            yield link
        await back_off.wait()


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__

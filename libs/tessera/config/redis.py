"""Where Redis (or Valkey) is: one server, one behind TLS or a socket, or whichever Sentinel names.

Spec: DESIGN.md sections 2.6 and 9.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from tessera.config.values import Duration, FilePath, Section

_DEFAULT_PORT = 6379
_DEFAULT_SENTINEL_PORT = 26379
# scheme -> (TLS, Sentinel)
_SCHEMES = {
    "redis": (False, False),
    "valkey": (False, False),
    "rediss": (True, False),
    "valkeys": (True, False),
    "redis+sentinel": (False, True),
    "valkey+sentinel": (False, True),
    "rediss+sentinel": (True, True),
    "valkeys+sentinel": (True, True),
}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed URL.

    Attributes:
        hosts: (host, port) of the one server, or of the Sentinels.
        socket: a Unix socket in their place.
        service: the name of the master that the Sentinels watch; empty without Sentinel.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    socket: Path | None = None
    service: str = ""
    database: int = 0
    tls: bool = False
    username: str | None = None
    password: str | None = None


def parse_redis_url(url: str) -> RedisAddress:
    """A URL as the libraries of Redis write them.

    `redis://[[user]:password@]host[:port][/database]`, `rediss://` with TLS, `unix://[[user]:password@]/path[?db=n]`,
    `redis+sentinel://[[user]:password@]host[:port],host[:port].../service[/database]`. `valkey` may stand for `redis`.

    Raises:
        ValueError: it is something else; the text does not repeat the URL, which may hold a password.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            return _parse_socket(parts)
        if parts.scheme not in _SCHEMES:
            raise ValueError("must be a redis://, rediss://, redis+sentinel:// or unix:// URL")
        tls, is_sentinel = _SCHEMES[parts.scheme]
        username, password, place = _parse_login(parts.netloc)
        segments = [segment for segment in parts.path.split("/") if segment]
        service = unquote(segments.pop(0)) if is_sentinel and segments else ""
        if is_sentinel and not service:
            raise ValueError("must name the master: redis+sentinel://host:26379/mymaster")
        if len(segments) > 1:
            raise ValueError("has too many parts after the host")
        default_port = _DEFAULT_SENTINEL_PORT if is_sentinel else _DEFAULT_PORT
        hosts = tuple(_parse_host(host, default_port) for host in place.split(","))
        if len(hosts) > 1 and not is_sentinel:
            raise ValueError("may name several hosts only with redis+sentinel://")
        database = _parse_database(segments[0]) if segments else 0
        return RedisAddress(hosts, None, service, database, tls, username, password)
    except ValueError as error:
        raise ValueError(str(error)) from None


def _parse_socket(parts: SplitResult) -> RedisAddress:
    username, password, place = _parse_login(parts.netloc)
    if place or not parts.path.startswith("/") or len(parts.path) < 2:
        raise ValueError("must hold an absolute path: unix:///run/redis/redis.sock")
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    database = _parse_database(query.get("db", "0"))
    return RedisAddress((), Path(unquote(parts.path)), "", database, False, username, password)


def _parse_login(netloc: str) -> tuple[str | None, str | None, str]:
    login, at, place = netloc.rpartition("@")
    if not at:
        return None, None, place
    username, colon, password = login.partition(":")
    return unquote(username) or None, unquote(password) if colon else None, place


def _parse_host(text: str, default_port: int) -> tuple[str, int]:
    parsed = urlsplit(f"//{text}")
    try:
        port = parsed.port
    except ValueError:
        raise ValueError("has a port that is no number up to 65535") from None
    if not parsed.hostname:
        raise ValueError("must name a host")
    return parsed.hostname, default_port if port is None else port


def _parse_database(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise ValueError("has a database that is no number")
    return int(text)


def _check_url(url: SecretStr) -> SecretStr:
    parse_redis_url(url.get_secret_value())
    return url


class RedisSettings(Section):
    """Redis or Valkey. It carries hints only: emptied or away, it makes the server slower and loses nothing.

    Attributes:
        url: as `parse_redis_url` takes it.
        username, password: instead of those in the URL.
        sentinel_password: of the Sentinels themselves.
        tls_ca_path: the authority that signed the server's certificate, where the system does not know it.
        key_prefix: in front of every key and channel, so that several homeservers may share one Redis.
        connect_timeout: of a connection, in milliseconds.
        publish_timeout: how long a message may take to get there before it is given up, in milliseconds.
    """

    url: Annotated[SecretStr, AfterValidator(_check_url)]
    username: str | None = None
    password: SecretStr | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    tls_ca_path: FilePath | None = None
    key_prefix: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")] = "tessera:"
    connect_timeout: Annotated[Duration, Field(ge=10, le=60_000)] = 2_000
    publish_timeout: Annotated[Duration, Field(ge=10, le=10_000)] = 500

    @property
    def address(self) -> RedisAddress:
        """The URL's parts."""
        return parse_redis_url(self.url.get_secret_value())

"""Connections to other servers: one pool, TLS as the operator wants it, and never into the inner network.

Spec: S-S API §TLS.
"""

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from matrixcore.globs import whole_value_matcher
from matrixcore.identifiers import ServerName
from tessera.config import Settings
from tessera.federation.dns import Dns, DnsFailed, SystemDns
from tessera.federation.server_names import is_address
from tessera.http.address_guard import AddressGuard, AddressInfo, BlockedAddress

USER_AGENT = "Tessera (Matrix homeserver)"
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # without a byte; a peer may think for a while before it answers
MAX_CONNECTIONS = 1_000
MAX_PER_PEER = 16
KEEP_ALIVE_SECONDS = 25.0  # peers and their proxies close what is idle, often after 30 s
MAX_HEAD_BYTES = 16 * 1024

_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class PeerTls:
    """Which certificates are believed.

    Args:
        authorities: files of certificates that replace the system's; none for the system's.
        verify: False believes everything, for tests.
        unverified: globs of servers whose certificates are not looked at.
        minimum_version: "1.2" or "1.3".
    """

    def __init__(
        self,
        authorities: Sequence[Path] = (),
        *,
        verify: bool = True,
        unverified: Sequence[str] = (),
        minimum_version: str = "1.2",
    ) -> None:
        self._verify = verify
        self._unverified: tuple[Callable[[str], bool], ...] = tuple(whole_value_matcher(glob) for glob in unverified)
        self._minimum = _TLS_VERSIONS[minimum_version]
        self._authorities = tuple(authorities)
        if authorities:
            _ = self._strict  # what cannot be read shows at once

    @classmethod
    def of(cls, settings: Settings) -> "PeerTls":
        """What the configuration says.

        Raises:
            OSError: a file of federation_custom_ca_list holds no certificates (`ssl.SSLError` among them).
        """
        return cls(
            settings.federation_custom_ca_list,
            verify=settings.federation_verify_certificates
            and not settings.use_insecure_ssl_client_just_for_testing_do_not_use,
            unverified=settings.federation_certificate_verification_whitelist,
            minimum_version=settings.federation_client_minimum_tls_version,
        )

    @cached_property
    def _strict(self) -> ssl.SSLContext:
        if not self._authorities:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            for path in self._authorities:
                context.load_verify_locations(cafile=path)
        context.minimum_version = self._minimum
        return context

    @cached_property
    def _blind(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = self._minimum
        return context

    def context_for(self, server: ServerName) -> ssl.SSLContext:
        """The context of connections to a server (by its own name, whoever answers for it)."""
        if not self._verify or any(matches(server) for matches in self._unverified):
            return self._blind
        return self._strict


class _GuardedNames(AbstractResolver):
    """Names for aiohttp, from our own DNS; the guard is at the sockets."""

    def __init__(self, dns: Dns) -> None:
        self._dns = dns

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        places = await self._dns.find_places(host, port, family)
        if not places:
            raise DnsFailed(f"there is no host {host}")
        return [
            ResolveResult(hostname=host, host=address, port=its_port, family=family, proto=0, flags=0)
            for address, its_port in places
        ]

    async def close(self) -> None:
        """The DNS belongs to the connections."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy for requests to other servers.

    Attributes:
        url: `http://[user:password@]host:port`; TLS to a peer goes through it untouched (CONNECT).
        except_for: hosts and networks that are reached without it: `example.org`, `.example.org`, `10.0.0.0/8`, `*`.
    """

    url: str
    except_for: Sequence[str] = ()

    def is_for(self, host: str) -> bool:
        """Whether a host (a name, or an address without brackets) is reached through it."""
        return not any(_is_meant(host.lower(), pattern.strip().lower()) for pattern in self.except_for)


def _is_meant(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if is_address(host):
        try:
            return ip_address(host) in ip_network(pattern, strict=False)
        except ValueError:
            return False
    bare = pattern.lstrip(".")
    return bool(bare) and (host == bare or host.endswith("." + bare))


class PeerConnections:
    """The pool of a process; close it at the end. Nothing is opened before it is needed.

    Args:
        guard: which addresses may be called.
        dns: whom to ask for names; by default whom the machine asks.
        proxy: through which peers are reached. It resolves their names, so that only addresses that are written out
            are refused here; its own address may be anywhere.
    """

    def __init__(
        self, tls: PeerTls, guard: AddressGuard, dns: Dns | None = None, *, proxy: Proxy | None = None
    ) -> None:
        self.tls = tls
        self._dns = dns
        self._guard = guard
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None

    @property
    def dns(self) -> Dns:
        """Whom to ask for names."""
        if self._dns is None:
            self._dns = SystemDns()
        return self._dns

    async def request(self, method: str, url: str | URL, **options: Any) -> aiohttp.ClientResponse:
        """An answer whose body is still to be read, and which is to be closed; redirects are not followed.

        Args:
            options: as aiohttp has them: headers, data, ssl, server_hostname.

        Raises:
            aiohttp.ClientError, OSError, ValueError: BlockedAddress and TimeoutError among them.
        """
        target = URL(url) if isinstance(url, str) else url
        host = target.host or ""
        if self._proxy is None or not self._proxy.is_for(host):
            if self._session is None:
                self._session = self._open(self._guard.open_socket)
            return await self._session.request(method, target, allow_redirects=False, **options)
        if is_address(host) and not self._guard.allows(host):
            raise BlockedAddress("the address may not be called")
        if self._proxied is None:
            self._proxied = self._open(None)
        return await self._proxied.request(method, target, allow_redirects=False, proxy=self._proxy.url, **options)

    def _open(self, socket_factory: Callable[[AddressInfo], socket.socket] | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                limit_per_host=MAX_PER_PEER,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                use_dns_cache=False,
                family=socket.AF_UNSPEC,
                resolver=_GuardedNames(self.dns),
                socket_factory=socket_factory,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
            auto_decompress=False,  # nothing packed is asked for, and a small packed piece could become a gigabyte
            trust_env=False,
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        )

    @classmethod
    def of(cls, settings: Settings) -> "PeerConnections":
        """What the configuration says.

        Raises:
            OSError: as `PeerTls.of`.
        """
        guard = AddressGuard(settings.ip_range_blocklist, settings.ip_range_allowlist, only_public=False)
        return cls(PeerTls.of(settings), guard, proxy=proxy_of(settings))

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._session, self._proxied):
            if session is not None:
                await session.close()
        if self._dns is not None:
            await self._dns.close()


def proxy_of(settings: Settings) -> Proxy | None:
    """What https_proxy and no_proxy_hosts say."""
    if settings.https_proxy is None:
        return None
    url = settings.https_proxy.get_secret_value()
    return Proxy(url if "://" in url else f"http://{url}", settings.no_proxy_hosts)

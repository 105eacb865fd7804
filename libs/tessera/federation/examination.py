"""What stands between a server and those that want to reach it, looked at from outside, step by step.

Every step has its findings and none raises: the next one says what follows from a failure. Nothing is remembered
and no address is refused, so that an operator sees what there is.

Spec: S-S API §Server discovery, §TLS, §Retrieving server keys.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import aiohttp
from yarl import URL

from matrixcore.canonical_json import InvalidJson, parse_exact_json
from matrixcore.identifiers import ServerName
from matrixcore.server_keys import InvalidKeyDocument, KeyDocument, read_key_document
from tessera.clock import Clock
from tessera.federation.connections import PeerConnections
from tessera.federation.discovery import SERVICES, Discovery, Target
from tessera.federation.dns import DnsFailed
from tessera.federation.errors import PeerUnreachable
from tessera.federation.server_names import is_address, split_server_name
from tessera.federation.well_known import PATH as WELL_KNOWN_PATH
from tessera.federation.well_known import Invalid, NoAnswer, WellKnown
from tessera.http.address_guard import AddressGuard

CONNECT_SECONDS = 10.0
MAX_BYTES = 64 * 1024
MAX_SKEW_SECONDS = 60
SOON_DAYS = 14


class Level(Enum):
    """How bad it is."""

    GOOD = "good"
    NOTE = "note"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        step: what was looked at: "well-known", "TLS 192.0.2.1:8448".
    """

    level: Level
    step: str
    text: str


def good(step: str, text: str) -> Finding:
    """As it should be."""
    return Finding(Level.GOOD, step, text)


def failure(step: str, text: str) -> Finding:
    """Other servers fail here."""
    return Finding(Level.FAILURE, step, text)


class Examination:
    """Looks at servers.

    Args:
        connections: with a guard that lets everything through.
        public: says which addresses servers of the open network would call.
    """

    def __init__(
        self,
        connections: PeerConnections,
        well_known: WellKnown,
        discovery: Discovery,
        public: AddressGuard,
        clock: Clock,
    ) -> None:
        self._connections = connections
        self._well_known = well_known
        self._discovery = discovery
        self._public = public
        self._clock = clock

    async def examine(
        self, server: ServerName, expected_keys: Mapping[str, bytes] | None = None
    ) -> AsyncIterator[Finding]:
        """Findings about a server, in the order of the steps.

        Args:
            expected_keys: key ID -> public key that it must publish; None if that is not known here.
        """
        name = split_server_name(server)
        if name.is_address or name.port is not None:
            yield good("name", f"{server} says itself where it is: neither well-known nor SRV count")
        else:
            async for finding in self._examine_delegation(server):
                yield finding
        try:
            targets = await self._discovery.find(server)
        except PeerUnreachable as error:
            yield failure("SRV", str(error))
            return
        for target in targets:
            async for finding in self._examine_target(server, target, expected_keys):
                yield finding

    async def _examine_delegation(self, server: ServerName) -> AsyncIterator[Finding]:
        """Steps 3 to 5 of the discovery."""
        delegated: ServerName | None = None
        try:
            delegated = (await self._well_known.fetch(server)).delegated
            yield good("well-known", f"https://{server}{WELL_KNOWN_PATH} delegates to {delegated}")
        except Invalid as error:
            if str(error) == "status 404":
                yield Finding(Level.NOTE, "well-known", f"https://{server}{WELL_KNOWN_PATH} is not there")
            else:
                yield failure("well-known", f"https://{server}{WELL_KNOWN_PATH} is of no use: {error}")
        except NoAnswer as error:
            yield Finding(Level.NOTE, "well-known", f"https://{server}{WELL_KNOWN_PATH} does not answer: {error}")
        name = split_server_name(delegated or server)
        if name.is_address or name.port is not None:
            return
        for number, prefix in enumerate(SERVICES):
            try:
                records = await self._connections.dns.find_services(prefix + name.host)
            except DnsFailed as error:
                yield Finding(Level.WARNING, "SRV", f"{prefix}{name.host}: {error}")
                continue
            for record in records:
                where = f"{prefix}{name.host} leads to {record.target}:{record.port}"
                old = Finding(Level.WARNING, "SRV", f"{where}; the name {prefix} is deprecated, use {SERVICES[0]}")
                yield good("SRV", where) if number == 0 else old
            if records:
                return
        yield Finding(Level.NOTE, "SRV", f"none for {name.host}, so port 8448 counts")

    async def _examine_target(
        self, server: ServerName, target: Target, expected_keys: Mapping[str, bytes] | None
    ) -> AsyncIterator[Finding]:
        try:
            places = (
                [(target.host, target.port)]
                if is_address(target.host)
                else await self._connections.dns.find_places(target.host, target.port)
            )
        except DnsFailed as error:
            yield failure("DNS", f"{target.host}: {error}")
            return
        if not places:
            yield failure("DNS", f"{target.host} has no address")
            return
        if not is_address(target.host):
            yield good("DNS", f"{target.host} is {', '.join(address for address, _ in places)}")
        unreached: list[Finding] = []
        reached = False
        for address, port in places:
            where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            if not self._public.allows(address):
                text = "servers of the open network call no such address (ip_range_blocklist)"
                yield Finding(Level.WARNING, f"address {where}", text)
            try:
                finding = await self._examine_tls(server, target, address, port, where)
            except OSError as error:
                reason = f"no answer within {CONNECT_SECONDS:g} s: closed by a firewall?"
                if not isinstance(error, TimeoutError):
                    reason = f"no connection: {error.strerror or error}"
                unreached.append(failure(f"TLS {where}", reason))
                continue
            reached = True
            yield finding
            if finding.level is not Level.FAILURE:
                for more in await self._examine_answers(server, target, where, expected_keys):
                    yield more
        for finding in unreached:
            # Whoever asks tries the other addresses as well, only later.
            yield Finding(Level.WARNING, finding.step, finding.text) if reached else finding

    async def _examine_tls(self, server: ServerName, target: Target, address: str, port: int, where: str) -> Finding:
        """What is at an address. Raises OSError: nobody takes a connection there."""
        step = f"TLS {where}"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(
                    address, port, ssl=self._connections.tls.context_for(server), server_hostname=target.tls_name
                )
        except ssl.SSLCertVerificationError as error:
            return failure(step, f"the certificate is not believed: {error.verify_message}")
        except ssl.SSLError as error:
            return failure(step, f"no TLS: {error.reason or error}")
        try:
            certificate: Mapping[str, Any] = writer.get_extra_info("peercert") or {}
            version = writer.get_extra_info("ssl_object").version()
        finally:
            writer.close()
        if not certificate:
            return Finding(Level.WARNING, step, f"{version}; the configuration has certificates not looked at")
        until = ssl.cert_time_to_seconds(certificate["notAfter"])
        days = int((until - self._clock.now_ms() / 1000) // 86_400)
        text = f"{version}, a certificate for {target.tls_name} from {_issuer(certificate)}, good for {days} days"
        return Finding(Level.WARNING if days < SOON_DAYS else Level.GOOD, step, text)

    async def _examine_answers(
        self, server: ServerName, target: Target, where: str, expected_keys: Mapping[str, bytes] | None
    ) -> Sequence[Finding]:
        try:
            content, headers = await self.ask(server, target, where, "/_matrix/key/v2/server")
        except PeerUnreachable as error:
            return [failure(f"keys {where}", str(error))]
        now_ms = self._clock.now_ms()
        findings = [*_check_date(where, headers, now_ms), *_check_keys(server, where, content, expected_keys, now_ms)]
        try:
            content, _ = await self.ask(server, target, where, "/_matrix/federation/v1/version")
            named = parse_exact_json(content)["server"]
            findings.append(good(f"version {where}", f"{named['name']} {named['version']}"))
        except (PeerUnreachable, InvalidJson, LookupError, TypeError) as error:
            findings.append(failure(f"version {where}", f"/_matrix/federation/v1/version: {error}"))
        return findings

    async def ask(self, server: ServerName, target: Target, where: str, path: str) -> tuple[bytes, Mapping[str, str]]:
        """GET something at one place: (body, headers) of a success.

        Raises:
            PeerUnreachable
        """
        url = URL(f"https://{where}{path}", encoded=True)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                answer = await self._connections.request(
                    "GET",
                    url,
                    headers={"Host": target.host_header},
                    ssl=self._connections.tls.context_for(server),
                    server_hostname=target.tls_name,
                )
                try:
                    content = await answer.content.read(MAX_BYTES + 1)
                    while len(content) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES)):
                        content += more
                finally:
                    answer.close()
                if answer.status != 200:
                    raise PeerUnreachable(f"{path} answers with status {answer.status}")
                if len(content) > MAX_BYTES:
                    raise PeerUnreachable(f"{path} answers more than {MAX_BYTES} bytes")
                return content, answer.headers
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerUnreachable(f"{path}: {str(error) or type(error).__name__}") from error


def _check_keys(
    server: ServerName, where: str, content: bytes, expected: Mapping[str, bytes] | None, now_ms: int
) -> list[Finding]:
    step = f"keys {where}"
    try:
        raw = parse_exact_json(content)
        document: KeyDocument = read_key_document(raw if isinstance(raw, dict) else {}, now_ms=now_ms)
    except (InvalidJson, InvalidKeyDocument) as error:
        return [failure(step, f"the key document is of no use: {error}")]
    if document.server_name != server:
        return [failure(step, f"these are the keys of {document.server_name}: another server answers here")]
    if document.valid_until_ts < now_ms:
        return [failure(step, "the key document has expired: is the clock there, or here, right?")]
    for key_id, public_key in (expected or {}).items():
        published = document.keys.get(key_id)
        if published is None or published.is_old:
            return [failure(step, f"{key_id}, with which this server signs, is not published there")]
        if published.public_key != public_key:
            return [failure(step, f"{key_id} is published as another key than the one in the key file")]
    current = [key_id for key_id, key in document.keys.items() if not key.is_old]
    return [good(step, f"signs with {', '.join(current)}")]


def _check_date(where: str, headers: Mapping[str, str], now_ms: int) -> list[Finding]:
    if "Date" not in headers:
        return []
    try:
        there: datetime = parsedate_to_datetime(headers["Date"])
    except (ValueError, TypeError):
        return []
    skew = there.timestamp() - now_ms / 1000
    if abs(skew) > MAX_SKEW_SECONDS:
        text = f"its clock and this machine's are {abs(skew):.0f} s apart"
        return [Finding(Level.WARNING, f"clock {where}", text)]
    return [good(f"clock {where}", "as this machine's")]


def _issuer(certificate: Mapping[str, Any]) -> str:
    names = {key: value for parts in certificate.get("issuer", ()) for key, value in parts}
    return str(names.get("organizationName") or names.get("commonName") or "an authority without a name")

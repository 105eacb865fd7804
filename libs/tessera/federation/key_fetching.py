"""Getting keys from their servers, and from notaries.

Spec: S-S API §Querying Keys Through Another Server.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import ServerName
from matrixcore.server_keys import InvalidKeyDocument, KeyDocument, ServerKey, read_key_document
from matrixcore.signing import decode_base64, verify_json
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.config.sections import TrustedKeyServer
from tessera.federation.client import FederationClient
from tessera.federation.errors import PeerError
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.server_keys import StoredDocument, set_key_documents, set_server_keys

log = structlog.get_logger(__name__)

MAX_DOCUMENT_BYTES = 64 * 1024
MAX_NOTARY_BYTES = 4 << 20
FETCH_SECONDS = 12.0
NOTARY_SECONDS = 20.0
MAX_AT_ONCE = 50
MAX_UNDER_WAY = 2_000
MAX_SERVERS = 10_000  # that it is remembered of when they were asked
KEPT_KEYS = 20  # of each, in memory
NOTARY_BATCH = 200  # servers in one question
# A server that has just answered, or not answered, is left alone for a while, the longer the more often it failed.
AGAIN_SECONDS = 10.0
MAX_AGAIN_SECONDS = 300.0
REQUEST_AGAIN_SECONDS = 3.0  # where the server itself waits for us to have its key
NOTARY_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class KeyNeed:
    """What a signature takes.

    Attributes:
        key_ids: any of them will do.
        at_ms: when it was made.
    """

    server: ServerName
    key_ids: tuple[str, ...]
    at_ms: int

    def is_met_by(self, keys: Mapping[str, ServerKey] | None) -> bool:
        """Whether one of these keys was valid then."""
        return keys is not None and any(
            key_id in keys and keys[key_id].valid_until_ts >= self.at_ms for key_id in self.key_ids
        )


KeyNeeds = Mapping[ServerName, Sequence[KeyNeed]]
KeysOf = Mapping[ServerName, Mapping[str, ServerKey]]
Found = dict[ServerName, dict[str, ServerKey]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """When a server may be asked again, and what it has said."""

    asked_at: float
    again_at: float
    failures: int = 0
    keys: Mapping[str, ServerKey] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Fetched:
    document: KeyDocument
    raw: Mapping[str, Any]


class KeyFetcher:
    """Asks for keys, and keeps what it gets in the account store.

    Args:
        notaries: asked in this order for what the servers themselves do not answer.
    """

    def __init__(
        self, client: FederationClient, accounts: Database, clock: Clock, notaries: Sequence[TrustedKeyServer]
    ) -> None:
        self._client = client
        self._accounts = accounts
        self._clock = clock
        self._notaries = tuple(notaries)
        self._asked: BoundedCache[ServerName, _Asked] = BoundedCache(MAX_SERVERS)
        self._asked_notaries: BoundedCache[tuple[ServerName, ServerName], float] = BoundedCache(MAX_SERVERS)
        self._under_way: dict[ServerName, asyncio.Task[_Fetched | None]] = {}
        # Anybody can claim to be any server: what requests make us ask for must not keep events waiting for their keys.
        self._slots = {is_request: asyncio.Semaphore(MAX_AT_ONCE) for is_request in (False, True)}

    async def fetch(self, needs: KeyNeeds, known: KeysOf, *, is_request: bool = False) -> Found:
        """The keys that could be had; what failed is missing.

        Args:
            known: keys that are known already; no notary's word replaces them.
            is_request: the servers wait for our answer, so they are asked though they were not there just now.
        """
        servers = [server for server in needs if self._may_ask(server, is_request=is_request)]
        answers = await asyncio.gather(*(self._ask_once(server, is_request=is_request) for server in servers))
        fetched = {server: one for server, one in zip(servers, answers, strict=True) if one is not None}
        # Somebody may have asked between a caller's look at the account store and this one.
        found: Found = {s: dict(asked.keys) for s in needs if (asked := self._asked.get(s)) is not None and asked.keys}
        found.update((server, dict(one.document.keys)) for server, one in fetched.items())
        left = {s: its for s, its in needs.items() if not all(need.is_met_by(found.get(s)) for need in its)}
        for notary in self._notaries:
            if not left:
                break
            for one in await self._ask_notary(notary, left):
                server = one.document.server_name
                fetched.setdefault(server, one)
                _add_from_notary(found.setdefault(server, {}), known.get(server, {}), one.document.keys)
            left = {s: its for s, its in left.items() if not all(need.is_met_by(found.get(s)) for need in its)}
        await self._keep({server: found[server] for server in fetched}, fetched)
        return found

    async def fetch_document(self, server: ServerName) -> Mapping[str, Any] | None:
        """The document of a server as it is now, for those to whom we are a notary; None if it cannot be had."""
        if not self._may_ask(server, is_request=False):
            return None
        one = await self._ask_once(server, is_request=True)
        if one is None:
            return None
        await self._keep({server: dict(one.document.keys)}, {server: one})
        return one.raw

    def _may_ask(self, server: ServerName, *, is_request: bool) -> bool:
        asked = self._asked.get(server)
        if asked is None:
            return True
        again_at = asked.again_at
        if is_request and asked.failures:
            again_at = min(again_at, asked.asked_at + REQUEST_AGAIN_SECONDS)
        return self._clock.monotonic() >= again_at

    async def _ask_once(self, server: ServerName, *, is_request: bool) -> _Fetched | None:
        """The server's answer, shared by all who want it at the same time; None also if too many are asked."""
        task = self._under_way.get(server)
        if task is None:
            if len(self._under_way) >= MAX_UNDER_WAY:
                return None
            task = asyncio.create_task(self._ask(server, self._slots[is_request]))
            self._under_way[server] = task
            task.add_done_callback(lambda _: self._under_way.pop(server, None))
        return await asyncio.shield(task)

    async def _ask(self, server: ServerName, slots: asyncio.Semaphore) -> _Fetched | None:
        try:
            async with slots:
                raw = await self._client.get(
                    server, "/_matrix/key/v2/server", timeout_s=FETCH_SECONDS, max_bytes=MAX_DOCUMENT_BYTES
                )
            document = read_key_document(raw, now_ms=self._clock.now_ms())
            if document.server_name != server:
                raise InvalidKeyDocument("of another server")
        except (PeerError, InvalidKeyDocument) as error:
            before = self._asked.get(server)
            failures = 1 if before is None else before.failures + 1
            wait = min(AGAIN_SECONDS * 2.0 ** min(failures - 1, 10), MAX_AGAIN_SECONDS)
            now = self._clock.monotonic()
            self._asked[server] = _Asked(now, now + wait, failures)
            log.info("no keys", server=server, error=str(error))
            return None
        now = self._clock.monotonic()
        self._asked[server] = _Asked(now, now + AGAIN_SECONDS, keys=newest_keys(document.keys))
        return _Fetched(document, raw)

    async def _ask_notary(self, notary: TrustedKeyServer, needs: KeyNeeds) -> list[_Fetched]:
        now = self._clock.monotonic()
        name = ServerName(notary.server_name)
        servers = [s for s in needs if s != name and (self._asked_notaries.get((name, s)) or 0.0) <= now]
        found: list[_Fetched] = []
        for start in range(0, len(servers), NOTARY_BATCH):
            batch = servers[start : start + NOTARY_BATCH]
            for server in batch:
                self._asked_notaries[name, server] = now + NOTARY_AGAIN_SECONDS
            question = {server: _criteria(needs[server]) for server in batch}
            try:
                answer = await self._client.post(
                    name,
                    "/_matrix/key/v2/query",
                    {"server_keys": question},
                    timeout_s=NOTARY_SECONDS,
                    max_bytes=MAX_NOTARY_BYTES,
                )
            except PeerError as error:
                log.info("no keys from a notary", notary=name, servers=len(batch), error=str(error))
                break
            documents = answer.get("server_keys")
            for raw in documents[: 2 * NOTARY_BATCH] if isinstance(documents, list) else ():
                one = self._from_notary(notary, raw)
                if one is not None and one.document.server_name in question:
                    found.append(one)
        return found

    def _from_notary(self, notary: TrustedKeyServer, raw: object) -> _Fetched | None:
        if not isinstance(raw, dict):
            return None
        if notary.verify_keys and not notary.accept_keys_insecurely:
            believed = {key_id: decode_base64(key) for key_id, key in notary.verify_keys.items()}
            if not verify_json(raw, notary.server_name, believed, strict=False):
                log.warning("a notary has not signed what it says", notary=notary.server_name)
                return None
        try:
            return _Fetched(read_key_document(raw, now_ms=self._clock.now_ms()), raw)
        except InvalidKeyDocument as error:
            log.info("a notary passed on what proves nothing", notary=notary.server_name, error=str(error))
            return None

    async def _keep(self, keys: Found, fetched: Mapping[ServerName, _Fetched]) -> None:
        if not fetched:
            return
        now_ms = self._clock.now_ms()
        documents = {
            server: StoredDocument(encode_canonical_json(one.raw, strict=False), one.document.valid_until_ts, now_ms)
            for server, one in fetched.items()
        }
        try:
            async with self._accounts.transaction() as tx:
                await set_server_keys(tx, keys)
                await set_key_documents(tx, documents)
        except DatabaseUnavailable as error:
            # They serve those who wait for them, and are fetched again when they are needed again.
            log.warning("keys not kept", error=str(error))


def _add_from_notary(
    found: dict[str, ServerKey], known: Mapping[str, ServerKey], keys: Mapping[str, ServerKey]
) -> None:
    """The server's own word stands, and so does what was known; a notary adds keys, and time for those that we have."""
    for key_id, key in keys.items():
        before = found.get(key_id) or known.get(key_id)
        if before is None or (before.public_key == key.public_key and before.valid_until_ts < key.valid_until_ts):
            found[key_id] = key


def newest_keys(keys: Mapping[str, ServerKey]) -> Mapping[str, ServerKey]:
    """So many keys of a server as are kept in memory; who has more is looked up in the account store for the others."""
    if len(keys) <= KEPT_KEYS:
        return keys
    newest = sorted(keys.items(), key=lambda item: item[1].valid_until_ts, reverse=True)
    return dict(newest[:KEPT_KEYS])


def _criteria(needs: Sequence[KeyNeed]) -> dict[str, dict[str, int]]:
    criteria: dict[str, dict[str, int]] = {}
    for need in needs:
        for key_id in need.key_ids[:10]:
            since = max(need.at_ms, criteria.get(key_id, {}).get("minimum_valid_until_ts", 0))
            criteria[key_id] = {"minimum_valid_until_ts": since}
    return criteria

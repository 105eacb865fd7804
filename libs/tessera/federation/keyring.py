"""The public keys of other servers, and what they prove.

Keys are looked for in memory, in the account store, at their servers (side by side), and at the notaries that the
operator trusts. Spec: S-S API §Retrieving server keys, §Request Authentication, §Signing Events.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matrixcore.event_signing import required_signers
from matrixcore.events import Event
from matrixcore.identifiers import ServerName
from matrixcore.room_versions import RoomVersionRules
from matrixcore.server_keys import ServerKey
from matrixcore.signing import signing_key_ids, verify_json, verify_signature
from tessera.bounded_cache import BoundedCache
from tessera.federation.errors import BadSignature, KeyNotFound
from tessera.federation.key_fetching import KeyFetcher, KeyNeed, KeysOf, newest_keys
from tessera.federation.own_keys import OwnKeys
from tessera.federation.signature_checks import SignatureChecker, SignedEvent
from tessera.storage.database import Database
from tessera.storage.server_keys import list_server_keys

MAX_SERVERS = 10_000  # in memory
ANY_TIME = 0  # for rooms whose versions do not ask when a key was valid


class Keyring:
    """Verifies what other servers have signed."""

    def __init__(self, accounts: Database, fetcher: KeyFetcher, own: OwnKeys, checker: SignatureChecker) -> None:
        self._accounts = accounts
        self._fetcher = fetcher
        self._own = own
        self._checker = checker
        self._known: BoundedCache[ServerName, Mapping[str, ServerKey]] = BoundedCache(MAX_SERVERS)

    async def verify_json(self, server: ServerName, signed_object: Mapping[str, Any], *, valid_at_ms: int) -> None:
        """Return if a server has signed an object.

        Args:
            valid_at_ms: when a key must have been valid; ANY_TIME for never mind.

        Raises:
            BadSignature: it has not.
            KeyNotFound: no valid key can be had.
        """
        key_ids = tuple(signing_key_ids(signed_object, server))
        if not key_ids:
            raise BadSignature(f"not signed by {server}")
        usable = await self._find_usable(KeyNeed(server, key_ids, valid_at_ms))
        if not verify_json(signed_object, server, usable, strict=False):
            raise BadSignature(f"wrongly signed by {server}")

    async def verify_request(
        self, server: ServerName, message: bytes, key_id: str, signature: str, *, now_ms: int
    ) -> None:
        """Return if a server has signed the bytes of a request, for whose answer it waits.

        Raises:
            BadSignature, KeyNotFound
        """
        # It is there to be asked for its key, though it may not have been just now.
        usable = await self._find_usable(KeyNeed(server, (key_id,), now_ms), is_request=True)
        if not verify_signature(message, signature, usable[key_id]):
            raise BadSignature(f"wrongly signed by {server}")

    async def _find_usable(self, need: KeyNeed, *, is_request: bool = False) -> dict[str, bytes]:
        """Key ID -> public key of those that were valid then, one of the named ones among them. Raises KeyNotFound."""
        keys = (await self.find_keys([need], is_request=is_request)).get(need.server, {})
        usable = _usable(keys, need.at_ms)
        if not usable.keys() & set(need.key_ids):
            raise KeyNotFound(f"no key of {need.server} that was valid then")
        return usable

    async def verify_events(
        self, events: Sequence[Event], rules: RoomVersionRules, *, is_asking: bool = True
    ) -> list[BadSignature | KeyNotFound | None]:
        """What the signatures of each event prove: None if all that it needs are right.

        Neither hashes nor anything else is checked. Keys of many servers are fetched side by side, and many events
        are checked in other processes.

        Args:
            is_asking: if not, a key that is not here is KeyNotFound.
        """
        needs = [self._needs_of(event, rules) for event in events]
        wanted = [need for its in needs if not isinstance(its, BadSignature) for need in its]
        keys = await self.find_keys(wanted, is_asking=is_asking)
        verdicts: list[BadSignature | KeyNotFound | None] = []
        checkable: list[SignedEvent] = []
        places: list[int] = []
        for event, its in zip(events, needs, strict=True):
            verdict = its if isinstance(its, BadSignature) else _unmet(its, keys)
            verdicts.append(verdict)
            if verdict is None and not isinstance(its, BadSignature):
                usable = {need.server: _usable(keys.get(need.server, {}), need.at_ms, need.key_ids) for need in its}
                checkable.append(SignedEvent(event, usable))
                places.append(len(verdicts) - 1)
        for place, wrong in zip(places, await self._checker.check(checkable), strict=True):
            verdicts[place] = None if wrong is None else BadSignature(wrong)
        return verdicts

    async def find_keys(self, needs: Sequence[KeyNeed], *, is_request: bool = False, is_asking: bool = True) -> KeysOf:
        """The keys of all servers that are named, as far as they can be had; they may be valid at other times only.

        Args:
            is_request: the servers wait for our answer.
            is_asking: if not, only those that are here.
        """
        wanted = _latest_needs(needs)
        found: dict[ServerName, Mapping[str, ServerKey]] = {}
        if self._own.server_name in wanted:
            found[self._own.server_name] = await self._own.list_keys()
            del wanted[self._own.server_name]
        for server in wanted:
            found[server] = self._known.get(server) or {}
        if missing := _servers_unmet(wanted, found):
            async with self._accounts.reading() as tx:
                self._learn(await list_server_keys(tx, missing), found)
        if is_asking and (missing := _servers_unmet(wanted, found)):
            open_needs = {server: [n for n in wanted[server] if not n.is_met_by(found[server])] for server in missing}
            self._learn(await self._fetcher.fetch(open_needs, found, is_request=is_request), found)
        return found

    def _learn(self, keys: KeysOf, found: dict[ServerName, Mapping[str, ServerKey]]) -> None:
        for server, its in keys.items():
            found[server] = {**found.get(server, {}), **its}
            self._known[server] = newest_keys(found[server])

    def _needs_of(self, event: Event, rules: RoomVersionRules) -> list[KeyNeed] | BadSignature:
        at_ms = event.origin_server_ts if rules.enforce_key_validity else ANY_TIME
        needs: list[KeyNeed] = []
        for server in required_signers(event):
            key_ids = tuple(signing_key_ids(event.fields, server))
            if not key_ids:
                return BadSignature(f"not signed by {server}")
            needs.append(KeyNeed(server, key_ids, at_ms))
        return needs


def _latest_needs(needs: Sequence[KeyNeed]) -> dict[ServerName, list[KeyNeed]]:
    """The needs of each server; of those for the same keys the latest, as a key that is valid then was so before."""
    latest: dict[ServerName, dict[tuple[str, ...], KeyNeed]] = {}
    for need in needs:
        its = latest.setdefault(need.server, {})
        other = its.get(need.key_ids)
        if other is None or other.at_ms < need.at_ms:
            its[need.key_ids] = need
    return {server: list(its.values()) for server, its in latest.items()}


def _servers_unmet(wanted: Mapping[ServerName, Sequence[KeyNeed]], found: KeysOf) -> list[ServerName]:
    return [server for server, needs in wanted.items() if not all(need.is_met_by(found[server]) for need in needs)]


def _unmet(needs: Sequence[KeyNeed], keys: KeysOf) -> KeyNotFound | None:
    for need in needs:
        if not need.is_met_by(keys.get(need.server)):
            return KeyNotFound(f"no key of {need.server} that was valid then")
    return None


def _usable(keys: Mapping[str, ServerKey], at_ms: int, key_ids: Sequence[str] | None = None) -> dict[str, bytes]:
    """The keys that were valid at a time: key ID -> public key."""
    chosen = keys if key_ids is None else [key_id for key_id in key_ids if key_id in keys]
    return {key_id: keys[key_id].public_key for key_id in chosen if keys[key_id].valid_until_ts >= at_ms}

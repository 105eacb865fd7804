"""The keyring over real peers and a real account store. Spec: S-S API §Retrieving server keys."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from matrixcore.event_building import build_event
from matrixcore.events import Event
from matrixcore.identifiers import RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.server_keys import make_key_document
from matrixcore.signing import SigningKey, sign_json
from tessera.clock import FakeClock
from tessera.config.sections import TrustedKeyServer
from tessera.federation.errors import BadSignature, KeyNotFound
from tessera.federation.key_fetching import KeyFetcher
from tessera.federation.keyring import Keyring
from tessera.federation.own_keys import OwnKeys
from tessera.federation.signature_checks import SignatureChecker
from tessera.storage.database import Database
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import OWN_KEY, OWN_NAME, World, answering, asking_world

DAY_MS = 86_400_000
V11, V4 = ROOM_VERSIONS["11"], ROOM_VERSIONS["4"]
ROOM = RoomId("!room:us.example")


@dataclass
class KeyPeer:
    """A server with keys: a real one on this machine, or one that is away."""

    name: ServerName
    clock: FakeClock
    key: SigningKey = field(default_factory=lambda: SigningKey("1", b"p" * 32))
    old: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    document: dict[str, Any] | None = None
    queries: dict[ServerName, dict[str, Any]] = field(default_factory=dict)
    is_away: bool = False
    asked: int = 0
    asked_as_notary: list[Any] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.Response:
        if self.is_away:
            return web.json_response({}, status=502)
        if request.path.endswith("/query"):
            wanted = (await request.json())["server_keys"]
            self.asked_as_notary.append(wanted)
            found = [document for name, document in self.queries.items() if name in wanted]
            return web.json_response({"server_keys": found})
        self.asked += 1
        return web.json_response(self.document or self.own_document())

    def own_document(self) -> dict[str, Any]:
        until = self.clock.now_ms() + DAY_MS
        return make_key_document(self.name, [self.key], current={}, old=self.old, valid_until_ts=until)

    def event(self, at_ms: int, *, rules: Any = V11, key: SigningKey | None = None, text: str = "hi") -> Event:
        """A message of this server."""
        return build_event(
            rules=rules,
            room_id=ROOM,
            sender=UserId(f"@user:{self.name}"),
            event_type="m.room.message",
            state_key=None,
            content={"body": text},
            origin_server_ts=at_ms,
            depth=5,
            prev_events=[],
            auth_events=[],
            server_name=self.name,
            signing_key=key or self.key,
        )


@dataclass
class KeyWorld:
    """A keyring and the peers around it."""

    world: World
    accounts: Database
    clock: FakeClock
    authority: PeerAuthority
    stack: AsyncExitStack
    notaries: list[TrustedKeyServer] = field(default_factory=list)

    async def peer(self, name: str) -> KeyPeer:
        peer = KeyPeer(ServerName(f"{name}:8448"), self.clock)
        port = await self.stack.enter_async_context(answering(self.authority, {"*": peer}, names=(name,)))
        self.world.dns.places[name, 8448] = [("127.0.0.1", port)]
        return peer

    def keyring(self) -> Keyring:
        """A new one, as after a restart."""
        fetcher = KeyFetcher(self.world.client, self.accounts, self.clock, self.notaries)
        own = OwnKeys(OWN_NAME, [OWN_KEY], self.accounts, self.clock, configured_old={}, validity_ms=DAY_MS)
        checker = SignatureChecker()
        self.stack.callback(checker.close)
        return Keyring(self.accounts, fetcher, own, checker)


@pytest.fixture
async def keys(accounts: Database, peer_authority: PeerAuthority) -> AsyncIterator[KeyWorld]:
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(asking_world(peer_authority, clock=clock))
        yield KeyWorld(world, accounts, clock, peer_authority, stack)


async def verdicts(keyring: Keyring, *events: Event) -> list[str]:
    """What comes of each event, in one word."""
    rules = events[0].rules
    return [type(one).__name__ if one else "good" for one in await keyring.verify_events(events, rules)]


async def test_keys_are_fetched_once_and_kept(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    now = keys.clock.now_ms()
    keyring = keys.keyring()
    signed = sign_json({"a": 1}, peer.name, peer.key)
    await asyncio.gather(*(keyring.verify_json(peer.name, signed, valid_at_ms=now) for _ in range(10)))
    assert await verdicts(keyring, peer.event(now), peer.event(now - 5 * DAY_MS)) == ["good", "good"]
    assert peer.asked == 1
    async with keys.accounts.counting() as count:
        await keyring.verify_json(peer.name, signed, valid_at_ms=now)
        assert count.statements == 0
        await keys.keyring().verify_json(peer.name, signed, valid_at_ms=now)
        assert count.statements == 1
    assert peer.asked == 1, "another process finds them in the account store"


async def test_wrong_signatures(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    now = keys.clock.now_ms()
    keyring = keys.keyring()
    with pytest.raises(BadSignature):
        await keyring.verify_json(peer.name, {"a": 1}, valid_at_ms=now)
    with pytest.raises(BadSignature):
        await keyring.verify_json(peer.name, {**sign_json({"a": 1}, peer.name, peer.key), "a": 2}, valid_at_ms=now)
    liar = SigningKey(peer.key.version, b"l" * 32)
    stranger = SigningKey("unknown", b"l" * 32)
    events = [
        peer.event(now, key=liar),
        peer.event(now),
        peer.event(now, key=stranger),
        KeyPeer(ServerName("nobody.example:1"), keys.clock).event(now),
    ]
    assert await verdicts(keyring, *events) == ["BadSignature", "good", "KeyNotFound", "KeyNotFound"]


async def test_keys_count_for_their_time(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    now = keys.clock.now_ms()
    keyring = keys.keyring()
    retired = SigningKey("0", b"r" * 32)
    peer.old[retired.key_id] = (retired.public_key, now - 1000)
    assert await verdicts(keyring, peer.event(now - 1000, key=retired), peer.event(now - 999, key=retired)) == [
        "good",
        "KeyNotFound",
    ]
    assert await verdicts(keyring, peer.event(now, key=retired, rules=V4)) == ["good"], "old rooms do not ask when"
    with pytest.raises(KeyNotFound):
        await keyring.verify_json(peer.name, sign_json({}, peer.name, retired), valid_at_ms=now)
    # What lies beyond the promise is asked for again, and then good or not.
    late = now + DAY_MS + 5
    asked = peer.asked
    assert await verdicts(keyring, peer.event(late)) == ["KeyNotFound"]
    keys.clock.shift(60)
    assert await verdicts(keyring, peer.event(late)) == ["good"]
    assert peer.asked > asked


async def test_a_dead_server_s_old_events_verify_with_the_keys_that_are_kept(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    now = keys.clock.now_ms()
    assert await verdicts(keys.keyring(), peer.event(now)) == ["good"]
    peer.is_away = True
    keys.clock.shift(400 * DAY_MS / 1000)
    keyring = keys.keyring()
    old, new = peer.event(now, text="old"), peer.event(keys.clock.now_ms())
    assert await verdicts(keyring, old, new) == ["good", "KeyNotFound"]


async def test_a_server_that_does_not_answer_is_left_alone_for_a_while(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    now = keys.clock.now_ms()
    keyring = keys.keyring()
    peer.is_away = True
    event, signed = peer.event(now), sign_json({}, peer.name, peer.key)
    assert await verdicts(keyring, event) == ["KeyNotFound"]
    peer.is_away = False
    assert await verdicts(keyring, event) == ["KeyNotFound"]
    assert peer.asked == 0
    keys.clock.shift(4)
    await keyring.verify_json(peer.name, signed, valid_at_ms=now, is_request=True)  # it shows life itself
    assert await verdicts(keyring, event) == ["good"]


async def test_events_with_made_up_keys_do_not_make_us_ask_each_time(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    keyring = keys.keyring()
    for number in range(20):
        event = peer.event(keys.clock.now_ms(), key=SigningKey(f"x{number}", b"x" * 32))
        assert await verdicts(keyring, event) == ["KeyNotFound"]
    assert peer.asked == 1


async def test_notaries_know_the_keys_of_dead_servers(keys: KeyWorld) -> None:
    dead, notary, liar = [await keys.peer(f"{name}.example") for name in ("dead", "notary", "liar")]
    dead.is_away = True
    # The first one lies: it makes up a document, which the dead server has not signed.
    invented = KeyPeer(dead.name, keys.clock, key=SigningKey("1", b"i" * 32)).own_document()
    invented["signatures"] = sign_json({**invented, "signatures": {}}, dead.name, liar.key)["signatures"]
    liar.queries[dead.name] = sign_json(invented, liar.name, liar.key)
    notary.queries[dead.name] = sign_json(dead.own_document(), notary.name, notary.key)
    keys.notaries += [
        TrustedKeyServer(server_name=liar.name),
        TrustedKeyServer(server_name=notary.name, verify_keys={notary.key.key_id: notary.key.public_key_base64}),
    ]
    now = keys.clock.now_ms()
    keyring = keys.keyring()
    forged = dead.event(now, key=SigningKey("1", b"i" * 32))
    assert await verdicts(keyring, forged, dead.event(now)) == ["BadSignature", "good"]
    assert notary.asked_as_notary == [{dead.name: {dead.key.key_id: {"minimum_valid_until_ts": now}}}]
    assert await verdicts(keys.keyring(), dead.event(now)) == ["good"], "kept"
    assert len(notary.asked_as_notary) == 1


async def test_no_notary_replaces_a_key_that_is_known(keys: KeyWorld) -> None:
    peer, notary = await keys.peer("a.example"), await keys.peer("notary.example")
    now = keys.clock.now_ms()
    assert await verdicts(keys.keyring(), peer.event(now)) == ["good"]
    peer.is_away = True
    keys.clock.shift(2 * DAY_MS / 1000)
    thief = KeyPeer(peer.name, keys.clock, key=SigningKey(peer.key.version, b"t" * 32))
    notary.queries[peer.name] = thief.own_document()
    keys.notaries.append(TrustedKeyServer(server_name=notary.name))
    later = keys.clock.now_ms()
    assert await verdicts(keys.keyring(), thief.event(later), peer.event(now)) == ["KeyNotFound", "good"]


async def test_a_notary_is_believed_only_with_its_own_signature(keys: KeyWorld) -> None:
    dead, notary = await keys.peer("dead.example"), await keys.peer("notary.example")
    dead.is_away = True
    notary.queries[dead.name] = sign_json(dead.own_document(), notary.name, SigningKey("1", b"w" * 32))
    expected = {notary.key.key_id: notary.key.public_key_base64}
    keys.notaries.append(TrustedKeyServer(server_name=notary.name, verify_keys=expected))
    assert await verdicts(keys.keyring(), dead.event(keys.clock.now_ms())) == ["KeyNotFound"]


async def test_key_servers_that_lie(keys: KeyWorld) -> None:
    peer, other = await keys.peer("a.example"), await keys.peer("b.example")
    now = keys.clock.now_ms()
    good = peer.own_document()
    lies: list[Any] = [
        other.own_document(),
        {**good, "valid_until_ts": good["valid_until_ts"] + 1},
        {**good, "verify_keys": {**good["verify_keys"], "ed25519:2": {"key": other.key.public_key_base64}}},
        {"server_name": peer.name},
        {**good, "padding": "x" * 100_000},
    ]
    for lie in lies:
        peer.document = lie
        assert await verdicts(keys.keyring(), peer.event(now)) == ["KeyNotFound"]
    rows = await keys.accounts.fetchval("SELECT count(*) FROM accounts.server_keys")
    assert rows == 0
    # Keys that are valid for ever are valid for a week.
    peer.document = make_key_document(peer.name, [peer.key], current={}, old={}, valid_until_ts=2**52)
    assert await verdicts(keys.keyring(), peer.event(now + 8 * DAY_MS)) == ["KeyNotFound"]
    assert await verdicts(keys.keyring(), peer.event(now + 6 * DAY_MS)) == ["good"]


async def test_many_events_of_many_servers(keys: KeyWorld) -> None:
    peers = [await keys.peer(f"s{number}.example") for number in range(20)]
    now = keys.clock.now_ms()
    keyring = keys.keyring()
    events = [peer.event(now - number, text=str(number)) for number in range(30) for peer in peers]
    events[77] = peers[3].event(now, key=SigningKey("1", b"?" * 32))
    async with keys.accounts.counting() as count:
        found = await verdicts(keyring, *events)
    assert [number for number, verdict in enumerate(found) if verdict != "good"] == [77]
    assert count.statements <= 4, "one look, and the keys kept together"
    assert [peer.asked for peer in peers] == [1] * 20


async def test_our_own_keys(keys: KeyWorld) -> None:
    own = KeyPeer(OWN_NAME, keys.clock, key=OWN_KEY)
    keyring = keys.keyring()
    event = own.event(keys.clock.now_ms())
    assert await verdicts(keyring, event, own.event(1, key=SigningKey("own", b"x" * 32))) == ["good", "BadSignature"]

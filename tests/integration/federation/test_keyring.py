"""The keyring over real peers and a real account store. Spec: S-S API §Retrieving server keys."""

import asyncio
from typing import Any

import pytest
from key_world import DAY_MS, V4, KeyPeer, KeyWorld

from matrixcore.events import Event
from matrixcore.identifiers import ServerName
from matrixcore.server_keys import make_key_document
from matrixcore.signing import SigningKey, sign_json, signed_bytes
from tessera.config.sections import TrustedKeyServer
from tessera.federation.errors import BadSignature, KeyNotFound
from tessera.federation.keyring import Keyring
from tests.fixtures.peer_world import OWN_KEY, OWN_NAME


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
    (signature,) = signed["signatures"][peer.name].values()
    await keyring.verify_request(
        peer.name, signed_bytes(signed), peer.key.key_id, signature, now_ms=now
    )  # it shows life
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


async def test_a_server_with_many_keys_fills_the_store_and_not_the_memory(keys: KeyWorld) -> None:
    peer = await keys.peer("a.example")
    now = keys.clock.now_ms()
    retired = [SigningKey(f"r{number}", bytes([number]) * 32) for number in range(100)]
    peer.old = {key.key_id: (key.public_key, now - 1 - number) for number, key in enumerate(retired)}
    keyring = keys.keyring()
    events = [peer.event(now - 1 - number, key=key) for number, key in enumerate(retired)]
    assert await verdicts(keyring, *events) == ["good"] * 100
    assert await verdicts(keyring, *reversed(events)) == ["good"] * 100
    assert peer.asked == 1
    assert len(keyring._known.get(peer.name) or ()) == 20


async def test_our_own_keys(keys: KeyWorld) -> None:
    own = KeyPeer(OWN_NAME, keys.clock, key=OWN_KEY)
    keyring = keys.keyring()
    event = own.event(keys.clock.now_ms())
    assert await verdicts(keyring, event, own.event(1, key=SigningKey("own", b"x" * 32))) == ["good", "BadSignature"]

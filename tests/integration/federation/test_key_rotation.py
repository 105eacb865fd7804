"""`tessera rotate-signing-key`: a new key, and the old one good for what it has signed."""

import os
import stat
from pathlib import Path

import pytest
from key_world import DAY_MS, KeyPeer, KeyWorld
from test_keyring import verdicts

from matrixcore.server_keys import ServerKey, read_key_document
from matrixcore.signing import SigningKey, read_signing_keys, write_signing_keys
from tessera.federation.key_rotation import rotate_signing_key
from tessera.federation.own_keys import REREAD_SECONDS, OwnKeys
from tests.fixtures.peer_world import OWN_KEY, OWN_NAME

NEW = SigningKey("new", b"n" * 32)


def own_keys(keys: KeyWorld, *signing_keys: SigningKey, **old: ServerKey) -> OwnKeys:
    """What a process has that read this key file."""
    configured = {f"ed25519:{version}": key for version, key in old.items()}
    return OwnKeys(OWN_NAME, signing_keys, keys.accounts, keys.clock, configured_old=configured, validity_ms=DAY_MS)


async def test_a_rotation(keys: KeyWorld, tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    file.write_text(write_signing_keys([OWN_KEY]))
    file.chmod(0o640)
    running = own_keys(keys, OWN_KEY, ancient=ServerKey(b"a" * 32, 7, is_old=True))
    before = read_key_document(await running.document(), now_ms=keys.clock.now_ms())
    assert {key_id: key.is_old for key_id, key in before.keys.items()} == {
        OWN_KEY.key_id: False,
        "ed25519:ancient": True,
    }

    retired_at = keys.clock.now_ms() + 3_600_000
    await rotate_signing_key(keys.accounts, OWN_NAME, file, old=[OWN_KEY], new=NEW, retired_at_ms=retired_at)
    assert read_signing_keys(file.read_text()) == [NEW]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == [file.name]

    keys.clock.shift(REREAD_SECONDS)
    # The process that still runs signs with the old key, and publishes both.
    still = read_key_document(await running.document(), now_ms=keys.clock.now_ms())
    assert {key_id: key.is_old for key_id, key in still.keys.items()} == {
        OWN_KEY.key_id: False,
        NEW.key_id: False,
        "ed25519:ancient": True,
    }
    started = own_keys(keys, NEW)
    after = read_key_document(await started.document(), now_ms=keys.clock.now_ms())
    assert after.keys[NEW.key_id].is_old is False
    assert after.keys[OWN_KEY.key_id] == ServerKey(OWN_KEY.public_key, retired_at, is_old=True)


async def test_peers_believe_what_the_old_key_signed_and_nothing_later(keys: KeyWorld, tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    file.write_text(write_signing_keys([OWN_KEY]))
    now = keys.clock.now_ms()
    await rotate_signing_key(keys.accounts, OWN_NAME, file, old=[OWN_KEY], new=NEW, retired_at_ms=now + 1000)
    peer = await keys.peer("a.example")
    peer.key, peer.document = OWN_KEY, None
    as_peer = KeyPeer(peer.name, keys.clock, key=OWN_KEY)
    peer.old, peer.key = {OWN_KEY.key_id: (OWN_KEY.public_key, now + 1000)}, NEW
    events = [as_peer.event(now + 1000), as_peer.event(now + 1001), peer.event(now + 1001)]
    assert await verdicts(keys.keyring(), *events) == ["good", "KeyNotFound", "good"]


async def test_a_second_rotation_keeps_the_first_old_key(keys: KeyWorld, tmp_path: Path) -> None:
    file = tmp_path / "signing.key"
    file.write_text(write_signing_keys([OWN_KEY]))
    now, newest = keys.clock.now_ms(), SigningKey("newest", b"m" * 32)
    await rotate_signing_key(keys.accounts, OWN_NAME, file, old=[OWN_KEY], new=NEW, retired_at_ms=now)
    await rotate_signing_key(keys.accounts, OWN_NAME, file, old=[NEW], new=newest, retired_at_ms=now + 5)
    document = read_key_document(await own_keys(keys, newest).document(), now_ms=now)
    assert {key_id: (key.is_old, key.valid_until_ts) for key_id, key in document.keys.items()} == {
        OWN_KEY.key_id: (True, now),
        NEW.key_id: (True, now + 5),
        newest.key_id: (False, now + DAY_MS),
    }


async def test_a_file_that_cannot_be_replaced_changes_nothing(keys: KeyWorld, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "signing.key"
    with pytest.raises(OSError, match="No such file"):
        await rotate_signing_key(keys.accounts, OWN_NAME, missing, old=[OWN_KEY], new=NEW, retired_at_ms=1)
    assert await keys.accounts.fetchval("SELECT count(*) FROM accounts.server_keys") == 0

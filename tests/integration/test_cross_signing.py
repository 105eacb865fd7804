"""Cross-signing keys and signatures on PostgreSQL. Spec: C-S API §Cross-signing."""

from typing import Any

import orjson
import pytest
from key_material import ALICE, BOB, CAROL, SERVER, Device, Identity, RecordingFanout, add_devices, public, sign

from matrixcore.identifiers import ServerName, UserId
from services.gateway.cross_signing import store_keys, store_signatures
from services.gateway.keys import list_keys
from services.gateway.keys import store_keys as store_device_keys
from tessera.http.errors import Forbidden, InvalidParam, MatrixError
from tessera.storage import device_changes
from tessera.storage.database import Database


class ProofNeeded(Exception):
    """What the interactive authentication would raise."""


class Scene:
    """Alice and Bob with a device and an identity each."""

    def __init__(self, accounts: Database) -> None:
        self.accounts = accounts
        self.fanout = RecordingFanout()
        self.phone, self.laptop = Device(ALICE, "A1"), Device(BOB, "B1")
        self.alice, self.bob = Identity(ALICE), Identity(BOB)

    async def set_up(self) -> "Scene":
        await add_devices(self.accounts, {ALICE: ["A1"], BOB: ["B1"], CAROL: []})
        for device in (self.phone, self.laptop):
            body = {"device_keys": device.keys}
            await store_device_keys(self.accounts, self.fanout, device.user_id, device.device_id, body)
        await self.upload(self.alice)
        await self.upload(self.bob)
        return self

    async def upload(self, identity: Identity, *, proven: bool = False, **changes: Any) -> None:
        async def confirm() -> None:
            if not proven:
                raise ProofNeeded

        await store_keys(self.accounts, self.fanout, identity.user_id, {**identity.upload, **changes}, confirm)

    async def sign(self, user_id: UserId, body: dict[str, Any]) -> dict[str, Any]:
        return await store_signatures(self.accounts, self.fanout, user_id, body)

    async def seen_by(self, reader: UserId) -> dict[str, Any]:
        asked: dict[UserId, list[str]] = {ALICE: [], BOB: []}
        found = await list_keys(self.accounts, ServerName(SERVER), reader, asked)
        reply: dict[str, Any] = orjson.loads(orjson.dumps(found))
        return reply


@pytest.fixture
async def scene(accounts: Database) -> Scene:
    return await Scene(accounts).set_up()


async def test_keys_are_published_and_the_user_signing_key_is_private(scene: Scene) -> None:
    seen = await scene.seen_by(ALICE)
    assert seen["master_keys"] == {ALICE: scene.alice.master_key, BOB: scene.bob.master_key}
    assert seen["self_signing_keys"][BOB] == scene.bob.upload["self_signing_key"]
    assert seen["user_signing_keys"] == {ALICE: scene.alice.upload["user_signing_key"]}
    assert scene.fanout.device_wakes[-1].user_ids == (BOB,)


async def test_only_new_keys_need_a_proof(scene: Scene) -> None:
    wakes = len(scene.fanout.device_wakes)
    await scene.upload(scene.alice)
    assert len(scene.fanout.device_wakes) == wakes, "the same keys again are no news"
    stranger = Identity(ALICE)
    with pytest.raises(ProofNeeded):
        await scene.upload(stranger)
    assert (await scene.seen_by(BOB))["master_keys"][ALICE] == scene.alice.master_key
    await scene.upload(stranger, proven=True)
    assert (await scene.seen_by(BOB))["master_keys"][ALICE] == stranger.master_key


async def test_keys_must_be_signed_by_the_master_key(scene: Scene) -> None:
    unsigned = Identity(ALICE).upload["self_signing_key"]
    with pytest.raises(MatrixError) as refusal:
        await scene.upload(scene.alice, self_signing_key=unsigned, proven=True)
    assert (refusal.value.status, refusal.value.errcode) == (400, "M_INVALID_SIGNATURE")
    with pytest.raises(MatrixError) as refusal:
        await scene.upload(Identity(CAROL), master_key=None)
    assert (refusal.value.status, refusal.value.errcode) == (400, "M_MISSING_PARAM")
    with pytest.raises(InvalidParam):
        await scene.upload(scene.alice, master_key=scene.bob.master_key)


async def test_a_key_must_not_be_a_device_id(scene: Scene) -> None:
    carol = Identity(CAROL)
    await add_devices(scene.accounts, {CAROL: [public(carol.self_signing)]})
    with pytest.raises(Forbidden):
        await scene.upload(carol)


async def test_everybody_sees_what_somebody_signs_of_their_own(scene: Scene) -> None:
    ssk = public(scene.alice.self_signing)
    device = sign({**scene.phone.keys, "signatures": {}}, ALICE, ssk, scene.alice.self_signing)
    master = sign(scene.alice.master_key, ALICE, "A1", scene.phone.key)
    body = {ALICE: {"A1": device, public(scene.alice.master): master}}
    for _ in range(2):
        assert await scene.sign(ALICE, body) == {}
    seen = await scene.seen_by(BOB)
    signatures = seen["device_keys"][ALICE]["A1"]["signatures"][ALICE]
    assert signatures == {
        **scene.phone.keys["signatures"][ALICE],
        f"ed25519:{ssk}": device["signatures"][ALICE][f"ed25519:{ssk}"],
    }
    assert seen["device_keys"][ALICE]["A1"]["unsigned"] == {"device_display_name": "A1's phone"}
    assert seen["master_keys"][ALICE]["signatures"] == master["signatures"]
    assert scene.fanout.device_wakes[-1].user_ids == (ALICE,)


async def test_what_one_signs_of_others_is_for_oneself(scene: Scene) -> None:
    usk = public(scene.alice.user_signing)
    signed = sign(scene.bob.master_key, ALICE, usk, scene.alice.user_signing)
    before = scene.fanout.device_wakes[-1].position
    assert await scene.sign(ALICE, {BOB: {public(scene.bob.master): signed}}) == {}
    assert (await scene.seen_by(ALICE))["master_keys"][BOB] == signed
    assert (await scene.seen_by(BOB))["master_keys"][BOB] == scene.bob.master_key
    async with scene.accounts.reading() as tx:
        head = await device_changes.find_head(tx)
        assert await device_changes.list_changed_users(tx, before, head, [], ALICE) == [BOB]
        assert await device_changes.list_changed_users(tx, before, head, [BOB], CAROL) == []


async def test_each_signature_that_fails_is_reported(scene: Scene) -> None:
    ssk = public(scene.alice.self_signing)
    wrong = sign({**scene.phone.keys, "signatures": {}}, ALICE, ssk, scene.bob.self_signing)
    changed = sign({**scene.phone.keys, "algorithms": []}, ALICE, ssk, scene.alice.self_signing)
    theirs = sign(scene.bob.master_key, ALICE, ssk, scene.alice.self_signing)
    failures = await scene.sign(
        ALICE, {ALICE: {"A1": wrong, "A9": wrong}, BOB: {public(scene.bob.master): theirs, "B1": scene.laptop.keys}}
    )
    codes = {(user, key): failure["errcode"] for user, keys in failures.items() for key, failure in keys.items()}
    assert codes == {
        (ALICE, "A1"): "M_INVALID_SIGNATURE",
        (ALICE, "A9"): "M_NOT_FOUND",
        (BOB, public(scene.bob.master)): "M_INVALID_SIGNATURE",
        (BOB, "B1"): "M_NOT_FOUND",
    }
    failures = await scene.sign(ALICE, {ALICE: {"A1": changed}})
    assert failures[ALICE]["A1"]["errcode"] == "M_INVALID_PARAM"


async def test_new_keys_forget_what_the_old_ones_signed(scene: Scene) -> None:
    device = sign(scene.phone.keys, ALICE, public(scene.alice.self_signing), scene.alice.self_signing)
    theirs = sign(scene.bob.master_key, ALICE, public(scene.alice.user_signing), scene.alice.user_signing)
    assert await scene.sign(ALICE, {ALICE: {"A1": device}, BOB: {public(scene.bob.master): theirs}}) == {}
    await scene.upload(Identity(ALICE), proven=True)
    seen = await scene.seen_by(ALICE)
    assert seen["device_keys"][ALICE]["A1"]["signatures"] == scene.phone.keys["signatures"]
    assert seen["master_keys"][BOB] == scene.bob.master_key


async def test_a_device_with_new_keys_loses_its_signatures(scene: Scene) -> None:
    signed = sign(scene.phone.keys, ALICE, public(scene.alice.self_signing), scene.alice.self_signing)
    await scene.sign(ALICE, {ALICE: {"A1": signed}})
    again = Device(ALICE, "A1")
    await store_device_keys(scene.accounts, scene.fanout, ALICE, "A1", {"device_keys": again.keys})
    assert (await scene.seen_by(BOB))["device_keys"][ALICE]["A1"]["signatures"] == again.keys["signatures"]

"""Device keys and one-time keys on PostgreSQL. Spec: C-S API §Key management API."""

import asyncio
from typing import Any

import orjson
import pytest
from key_material import ALICE, BOB, CAROL, SERVER, Device, RecordingFanout, add_devices, sign

from matrixcore.identifiers import ServerName, UserId
from services.gateway import keys
from services.gateway.key_signatures import InvalidSignature
from services.gateway.keys import list_keys, store_keys, take_keys
from tessera.http.errors import InvalidParam, MatrixError
from tessera.storage import device_changes, device_keys, devices, one_time_keys, user_log
from tessera.storage.database import Database
from tessera.storage.user_log import UserLogKind

HERE = ServerName(SERVER)
ALGORITHM = "signed_curve25519"


@pytest.fixture
def fanout() -> RecordingFanout:
    return RecordingFanout()


async def upload(accounts: Database, fanout: RecordingFanout, device: Device, **body: Any) -> dict[str, int]:
    return await store_keys(accounts, fanout, device.user_id, device.device_id, body)


async def query(accounts: Database, reader: UserId, asked: dict[UserId, list[str]]) -> dict[str, Any]:
    reply: dict[str, Any] = orjson.loads(orjson.dumps(await list_keys(accounts, HERE, reader, asked)))
    return reply


async def claim(accounts: Database, fanout: RecordingFanout, *devices: Device) -> dict[tuple[str, str], list[str]]:
    asked: dict[UserId, dict[str, str]] = {}
    for device in devices:
        asked.setdefault(device.user_id, {})[device.device_id] = ALGORITHM
    reply = (await take_keys(accounts, fanout, HERE, asked))["one_time_keys"]
    return {
        (user_id, device_id): [orjson.loads(orjson.dumps(key))["key"] for key in found.values()]
        for user_id, by_device in reply.items()
        for device_id, found in by_device.items()
    }


async def log_of(accounts: Database, user_id: UserId) -> list[tuple[int, str]]:
    async with accounts.reading() as tx:
        return [(row.kind, row.key) for row in await user_log.list_after(tx, user_id, 0)]


async def test_uploaded_keys_are_served_with_the_device_s_name(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1", "A2"], BOB: ["B1"]})
    phone = Device(ALICE, "A1")
    assert await upload(accounts, fanout, phone, device_keys={**phone.keys, "unsigned": {"x": 1}}) == {ALGORITHM: 0}
    assert [(wake.position, wake.user_ids) for wake in fanout.device_wakes] == [(1, (ALICE,))]
    reply = await query(accounts, BOB, {ALICE: [], BOB: [], UserId(f"@no:{SERVER}"): [], UserId("@r:far.org"): []})
    assert reply["device_keys"] == {
        ALICE: {"A1": {**phone.keys, "unsigned": {"device_display_name": "A1's phone"}}},
        BOB: {},
    }
    assert list(reply["failures"]) == ["far.org"]
    assert (await query(accounts, BOB, {ALICE: ["A2", "A1", "A1"]}))["device_keys"][ALICE].keys() == {"A1"}
    assert (await query(accounts, BOB, {ALICE: ["A2"]}))["device_keys"] == {ALICE: {}}


async def test_a_repeated_upload_is_no_change(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"]})
    phone = Device(ALICE, "A1")
    for _ in range(2):
        counts = await upload(
            accounts, fanout, phone, device_keys=phone.keys, one_time_keys=phone.one_time_keys(["k1", "k2"])
        )
        assert counts == {ALGORITHM: 2}
    assert len(fanout.device_wakes) == 1
    assert await log_of(accounts, ALICE) == [(UserLogKind.ONE_TIME_KEYS, "A1")] * 2
    assert [wake.position for wake in fanout.user_wakes] == [1, 2]


async def test_one_name_cannot_stand_for_two_keys(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"]})
    phone = Device(ALICE, "A1")
    await upload(accounts, fanout, phone, one_time_keys=phone.one_time_keys(["k1"]))
    other = {f"{ALGORITHM}:k1": sign({"key": "other"}, ALICE, "A1", phone.key), f"{ALGORITHM}:k2": "new"}
    with pytest.raises(MatrixError, match="One time key signed_curve25519:k1 already exists") as refusal:
        await upload(accounts, fanout, phone, one_time_keys=other)
    assert refusal.value.status == 400
    # Nothing of the refused request stays.
    assert await upload(accounts, fanout, phone) == {ALGORITHM: 1}
    assert await claim(accounts, fanout, phone) == {(ALICE, "A1"): ["k1"]}


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": BOB},
        {"device_id": "A2"},
        {"algorithms": "m.olm"},
        {"keys": {"ed25519:A2": "x"}},
        {"keys": None},
        {"signatures": {ALICE: "x"}},
    ],
)
async def test_keys_of_another_device_or_shape_are_refused(
    accounts: Database, fanout: RecordingFanout, change: dict[str, Any]
) -> None:
    phone = Device(ALICE, "A1")
    with pytest.raises(InvalidParam):
        await upload(accounts, fanout, phone, device_keys={**phone.keys, **change})


@pytest.mark.parametrize(
    "one_time", [{"k1": "x"}, {f"{ALGORITHM}:": "x"}, {f"{ALGORITHM}:a": 1}, {f"{ALGORITHM}:a": {}}]
)
async def test_malformed_one_time_keys_are_refused(
    accounts: Database, fanout: RecordingFanout, one_time: dict[str, Any]
) -> None:
    with pytest.raises(InvalidParam):
        await upload(accounts, fanout, Device(ALICE, "A1"), one_time_keys=one_time)


async def test_an_operator_may_want_signatures_checked(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"]})
    phone, stranger = Device(ALICE, "A1"), Device(ALICE, "A1")

    async def strictly(**body: Any) -> dict[str, int]:
        return await store_keys(accounts, fanout, ALICE, "A1", body, verify=True)

    forged = {**phone.keys, "signatures": stranger.keys["signatures"]}
    with pytest.raises(InvalidSignature):
        await strictly(device_keys=forged)
    assert (await query(accounts, BOB, {ALICE: []}))["device_keys"] == {ALICE: {}}
    assert await upload(accounts, fanout, phone, device_keys=forged) == {ALGORITHM: 0}
    await strictly(device_keys=phone.keys, one_time_keys=phone.one_time_keys(["k1"]))
    # Later uploads leave the device keys out.
    assert await strictly(one_time_keys=phone.one_time_keys(["k2"])) == {ALGORITHM: 2}
    with pytest.raises(InvalidSignature):
        await strictly(one_time_keys=stranger.one_time_keys(["k3"]))
    with pytest.raises(InvalidSignature):
        await strictly(fallback_keys=stranger.one_time_keys(["f"], fallback=True))
    assert await strictly() == {ALGORITHM: 2}


async def test_keys_are_claimed_in_the_order_of_uploads_and_once(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"], BOB: ["B1"]})
    phone, laptop = Device(ALICE, "A1"), Device(BOB, "B1")
    for name in ("z", "m", "a"):
        await upload(accounts, fanout, phone, one_time_keys=phone.one_time_keys([name]))
    names = [f"n{number}" for number in range(20)]
    await upload(accounts, fanout, laptop, one_time_keys=laptop.one_time_keys(names))
    fanout.user_wakes.clear()
    assert (await claim(accounts, fanout, phone, laptop))[ALICE, "A1"] == ["z"]
    assert {wake.user_id for wake in fanout.user_wakes} == {ALICE, BOB}
    assert await claim(accounts, fanout, phone) == {(ALICE, "A1"): ["m"]}
    replies = await asyncio.gather(*(claim(accounts, fanout, laptop) for _ in range(25)))
    given = [key for reply in replies for key in reply.get((BOB, "B1"), [])]
    assert len(given) == len(set(given)) == 19
    assert await upload(accounts, fanout, laptop) == {ALGORITHM: 0}


async def test_a_fallback_key_is_given_when_the_others_are_gone(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"]})
    phone = Device(ALICE, "A1")

    async def unused() -> list[str]:
        async with accounts.reading() as tx:
            return await one_time_keys.list_unused_fallback_types(tx, ALICE, "A1")

    first = phone.one_time_keys(["f1"], fallback=True)
    await upload(accounts, fanout, phone, one_time_keys=phone.one_time_keys(["k1"]), fallback_keys=first)
    assert await claim(accounts, fanout, phone) == {(ALICE, "A1"): ["k1"]}
    assert await unused() == [ALGORITHM]
    fanout.user_wakes.clear()
    for _ in range(2):
        assert await claim(accounts, fanout, phone) == {(ALICE, "A1"): ["f1"]}
    assert await unused() == []
    assert len(fanout.user_wakes) == 1, "only the first use is news"
    await upload(accounts, fanout, phone, fallback_keys=first)
    assert await unused() == [], "the same key again is not a fresh one"
    await upload(accounts, fanout, phone, fallback_keys=phone.one_time_keys(["f2"], fallback=True))
    assert await unused() == [ALGORITHM]
    assert await claim(accounts, fanout, phone) == {(ALICE, "A1"): ["f2"]}


async def test_statements_do_not_grow_with_the_users(accounts: Database, fanout: RecordingFanout) -> None:
    crowd = [Device(UserId(f"@u{number}:{SERVER}"), "D") for number in range(30)]
    await add_devices(accounts, {device.user_id: ["D"] for device in crowd})
    for device in crowd:
        await upload(
            accounts, fanout, device, device_keys=device.keys, one_time_keys=device.one_time_keys(["k1", "k2"])
        )
    async with accounts.counting() as count:
        reply = await query(accounts, ALICE, {device.user_id: [] for device in crowd})
    assert len(reply["device_keys"]) == 30
    assert count.statements == 2
    async with accounts.counting() as count:
        assert len(await claim(accounts, fanout, *crowd)) == 30
    assert (count.statements, count.transactions) == (2, 1)


async def test_a_device_that_goes_takes_its_keys_along(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1", "A2"], BOB: []})
    phone, silent = Device(ALICE, "A1"), Device(ALICE, "A2")
    await upload(accounts, fanout, phone, device_keys=phone.keys, one_time_keys=phone.one_time_keys(["k1"]))
    await upload(accounts, fanout, phone, fallback_keys=phone.one_time_keys(["f"], fallback=True))
    async with accounts.transaction() as tx:
        assert await device_keys.delete_device_data(tx, ALICE, [silent.device_id]) is None
        assert await device_keys.delete_device_data(tx, ALICE, ["A1", "A2"]) == 2
        await devices.delete_devices(tx, ALICE, ["A1"])
        assert await device_changes.list_changed_users(tx, 1, 2, [ALICE, BOB], CAROL) == [ALICE]
        assert await device_changes.list_changed_users(tx, 2, 2, [ALICE, BOB], CAROL) == []
    assert (await query(accounts, BOB, {ALICE: []}))["device_keys"] == {ALICE: {}}
    assert await claim(accounts, fanout, phone) == {}


def test_requests_of_the_wrong_shape_are_refused() -> None:
    for body in ({}, {"device_keys": []}, {"device_keys": {"alice": []}}, {"device_keys": {ALICE: {}}}):
        with pytest.raises(InvalidParam):
            keys.check_query(body)
    for body in ({}, {"one_time_keys": {ALICE: ["A1"]}}, {"one_time_keys": {ALICE: {"A1": 1}}}):
        with pytest.raises(InvalidParam):
            keys.check_claim(body)

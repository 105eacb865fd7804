"""Send-to-device messages on PostgreSQL. Spec: C-S API §Send-to-Device messaging."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from key_material import ALICE, BOB, CAROL, SERVER, RecordingFanout, add_devices

from matrixcore.identifiers import ServerName, UserId
from services.gateway.send_to_device import ToDeviceRequest, check_messages, deliver, within_limit
from tessera.clock import FakeClock
from tessera.http.errors import InvalidParam
from tessera.http.limits import LocalRateLimits, Rate
from tessera.storage import to_device, user_log
from tessera.storage.database import Database
from tessera.storage.to_device import TRANSACTION_LIFETIME_MS, TRIM_TURN, OutgoingMessage, is_trim_turn
from tessera.storage.user_log import UserLogKind

NOW_MS = 1_700_000_000_000


@pytest.fixture
def fanout() -> RecordingFanout:
    return RecordingFanout()


async def send(
    accounts: Database,
    fanout: RecordingFanout,
    messages: Mapping[UserId, Mapping[str, Mapping[str, Any]]],
    txn_id: str = "t1",
    device_id: str = "A1",
    event_type: str = "m.test",
    now_ms: int = NOW_MS,
) -> None:
    request = ToDeviceRequest(ALICE, device_id, event_type, txn_id, messages)
    await deliver(accounts, fanout, ServerName(SERVER), request, now_ms)


async def inbox(accounts: Database, user_id: UserId, device_id: str) -> list[bytes]:
    async with accounts.reading() as tx:
        return [message.content for message in await to_device.list_messages(tx, user_id, device_id, 0)]


async def test_each_device_gets_its_message(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"], BOB: ["B1", "B2"], CAROL: ["C1"]})
    await send(
        accounts,
        fanout,
        {
            BOB: {"*": {"to": "all"}, "B2": {"to": "B2"}, "B9": {}},
            CAROL: {"C1": {"to": "C1"}, "C9": {}},
            UserId("@far:away.org"): {"*": {}},
            UserId(f"@nobody:{SERVER}"): {"*": {}},
        },
    )
    assert await inbox(accounts, BOB, "B1") == [b'{"to":"all"}']
    assert await inbox(accounts, BOB, "B2") == [b'{"to":"B2"}']
    assert await inbox(accounts, CAROL, "C1") == [b'{"to":"C1"}']
    assert await inbox(accounts, CAROL, "C9") == []
    assert {(wake.user_id, wake.position) for wake in fanout.user_wakes} == {(BOB, 2), (CAROL, 1)}
    async with accounts.reading() as tx:
        log = await user_log.list_after(tx, BOB, 0)
        assert [(row.position, row.kind, row.key) for row in log] == [
            (1, UserLogKind.TO_DEVICE, "B1"),
            (2, UserLogKind.TO_DEVICE, "B2"),
        ]
        (message,) = await to_device.list_messages(tx, BOB, "B2", 1, 2)
        assert (message.position, message.sender, message.type) == (2, ALICE, "m.test")
        assert await to_device.list_messages(tx, BOB, "B2", 2) == []


async def test_a_repeated_request_sends_nothing(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1", "A2"], BOB: ["B1"]})
    await asyncio.gather(*(send(accounts, fanout, {BOB: {"B1": {"n": 1}}}) for _ in range(4)))
    assert len(await inbox(accounts, BOB, "B1")) == 1
    # The scope is the device and the path.
    await send(accounts, fanout, {BOB: {"B1": {"n": 2}}}, device_id="A2")
    await send(accounts, fanout, {BOB: {"B1": {"n": 3}}}, event_type="m.other")
    await send(accounts, fanout, {BOB: {"B1": {"n": 4}}}, txn_id="t2")
    assert len(await inbox(accounts, BOB, "B1")) == 4


async def test_old_transactions_are_swept(accounts: Database, fanout: RecordingFanout) -> None:
    for number in range(3):
        await send(accounts, fanout, {}, txn_id=f"old{number}")
    await send(accounts, fanout, {}, txn_id="new", now_ms=NOW_MS + TRANSACTION_LIFETIME_MS + 1)
    assert await accounts.fetchval("SELECT array_agg(txn_id) FROM accounts.to_device_transactions") == ["new"]


async def test_statements_do_not_grow_with_the_recipients(accounts: Database, fanout: RecordingFanout) -> None:
    crowd = [UserId(f"@u{number}:{SERVER}") for number in range(30)]
    await add_devices(accounts, {user_id: ["D1", "D2"] for user_id in crowd})
    async with accounts.counting() as count:
        await send(accounts, fanout, {user_id: {"*": {"n": 1}} for user_id in crowd})
    assert (count.statements, count.transactions) == (4, 1)
    assert len(fanout.user_wakes) == 30
    assert all(not is_trim_turn(position) for position in (1, 2)), "no inbox was trimmed here"


async def test_crossing_requests_do_not_block_each_other(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"], BOB: ["B1"], CAROL: ["C1"]})
    there: dict[UserId, dict[str, Any]] = {BOB: {"*": {}}, CAROL: {"*": {}}}
    back = dict(reversed(there.items()))
    await asyncio.gather(
        *(send(accounts, fanout, there if number % 2 else back, txn_id=str(number)) for number in range(16))
    )
    assert len(await inbox(accounts, BOB, "B1")) == len(await inbox(accounts, CAROL, "C1")) == 16


async def test_what_was_delivered_is_deleted(accounts: Database, fanout: RecordingFanout) -> None:
    await add_devices(accounts, {ALICE: ["A1"], BOB: ["B1", "B2"]})
    for number in range(3):
        await send(accounts, fanout, {BOB: {"B1": {"n": number}, "B2": {}}}, txn_id=str(number))
    async with accounts.transaction() as tx:
        second = (await to_device.list_messages(tx, BOB, "B1", 0, limit=2))[-1].position
        for _ in range(2):
            await to_device.delete_up_to(tx, BOB, "B1", second)
    assert await inbox(accounts, BOB, "B1") == [b'{"n":2}']
    assert len(await inbox(accounts, BOB, "B2")) == 3


async def test_a_full_inbox_loses_its_oldest(accounts: Database) -> None:
    await add_devices(accounts, {BOB: ["B1"]})
    async with accounts.transaction() as tx:
        for number in range(5):
            await to_device.add_messages(tx, ALICE, "m.test", [OutgoingMessage(BOB, "B1", b'{"n":%d}' % number)])
        await to_device.trim_inboxes(tx, [(BOB, "B1"), (BOB, "B9")], limit=3)
    assert await inbox(accounts, BOB, "B1") == [b'{"n":2}', b'{"n":3}', b'{"n":4}']


@pytest.mark.parametrize("step", [1, 2, 3, 32, 64, 100])
def test_every_rhythm_of_arrivals_has_its_turns(step: int) -> None:
    turns = sum(is_trim_turn(position) for position in range(1, 10_000 * step, step))
    assert 0.5 < turns * TRIM_TURN / 10_000 < 2


def test_requests_of_the_wrong_shape_are_refused() -> None:
    for body in (
        {},
        {"messages": []},
        {"messages": {"bob": {}}},
        {"messages": {BOB: []}},
        {"messages": {BOB: {"*": 1}}},
    ):
        with pytest.raises(InvalidParam):
            check_messages(body)


async def test_requests_for_keys_to_other_people_are_bounded() -> None:
    limits = LocalRateLimits(FakeClock(), {"rc_key_requests": Rate(1, 1)})
    messages = {user_id: {"*": {"action": "request"}} for user_id in (ALICE, BOB, CAROL)}
    assert within_limit(limits, ALICE, "A1", messages).keys() == {ALICE, BOB}
    assert within_limit(limits, ALICE, "A1", messages).keys() == {ALICE}, "the own devices can always be asked"
    assert within_limit(limits, ALICE, "A2", messages).keys() == {ALICE, BOB}

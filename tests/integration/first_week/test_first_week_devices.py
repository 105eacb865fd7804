"""Logging in again and deleting devices, against a whole server. Spec: C-S API §Login, §Device management."""

import asyncio
from typing import Any

import pytest

from tests.fixtures.whole_server import Device, WholeServer

PUSHER = {
    "kind": "http",
    "app_id": "app",
    "pushkey": "key",
    "app_display_name": "App",
    "device_display_name": "Phone",
    "lang": "en",
    "data": {"url": "https://push.example/_matrix/push/v1/notify"},
}


async def tell(sender: Device, user_id: str, device_id: str, txn_id: str) -> None:
    messages = {user_id: {device_id: {"said": txn_id}}}
    await sender.put(f"/sendToDevice/m.test/{txn_id}", {"messages": messages})


def inbox(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [event["content"] for event in answer.get("to_device", {}).get("events", [])]


async def test_logging_in_again_kills_the_old_token_and_keeps_the_inbox(
    server: WholeServer, alice: Device, bob: Device
) -> None:
    await alice.sync()
    await alice.post("/keys/upload", {"one_time_keys": {"curve25519:A": "YWJj"}})
    await tell(bob, alice.user_id, alice.device_id, "kept")
    again = await server.login("alice", device_id=alice.device_id)
    assert await alice.refused("GET", "/sync") == (401, "M_UNKNOWN_TOKEN")
    answer = await again.sync()
    assert inbox(answer) == [{"said": "kept"}]
    assert answer["device_one_time_keys_count"]["curve25519"] == 1


async def test_a_deleted_device_leaves_nothing(server: WholeServer, alice: Device, bob: Device) -> None:
    phone = await server.login("alice", device_id="PHONE")
    await phone.post("/pushers/set", PUSHER)
    await phone.post("/keys/upload", {"one_time_keys": {"curve25519:A": "YWJj"}})
    await tell(bob, alice.user_id, "PHONE", "lost")
    await alice.confirmed("DELETE", "/devices/PHONE", {})
    assert await phone.refused("GET", "/account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert (await alice.get("/pushers"))["pushers"] == []
    wanted = {"one_time_keys": {alice.user_id: {"PHONE": "curve25519"}}}
    assert (await bob.post("/keys/claim", wanted))["one_time_keys"] == {}
    assert [device["device_id"] for device in (await alice.get("/devices"))["devices"]] == [alice.device_id]
    again = await server.login("alice", device_id="PHONE")
    answer = await again.sync()
    assert inbox(answer) == []
    assert answer["device_one_time_keys_count"].get("curve25519", 0) == 0


@pytest.mark.parametrize("way", ["deleted", "replaced", "password", "deactivated"])
async def test_a_session_that_ends_ends_its_parked_sync(server: WholeServer, alice: Device, way: str) -> None:
    phone = await server.login("alice", device_id="PHONE")
    token = (await phone.sync())["next_batch"]
    parked = asyncio.create_task(phone.refused("GET", "/sync", since=token, timeout=20_000))
    await alice.get("/account/whoami")  # the parked request has gone ahead of it
    if way == "deleted":
        await alice.confirmed("POST", "/delete_devices", {"devices": ["PHONE"]})
    elif way == "replaced":
        await server.login("alice", device_id="PHONE")
    elif way == "password":
        await alice.confirmed("POST", "/account/password", {"new_password": "another horse battery"})
    else:
        await alice.confirmed("POST", "/account/deactivate", {})
    async with asyncio.timeout(5):
        assert await parked == (401, "M_UNKNOWN_TOKEN")


async def test_one_name_is_one_key(alice: Device) -> None:
    await alice.post("/keys/upload", {"one_time_keys": {"curve25519:A": "YWJj"}})
    await alice.post("/keys/upload", {"one_time_keys": {"curve25519:A": "YWJj"}})
    status, _ = await alice.refused("POST", "/keys/upload", {"one_time_keys": {"curve25519:A": "YWJk"}})
    assert status == 400

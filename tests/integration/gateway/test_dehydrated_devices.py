"""A device that sleeps on the server. Spec: MSC3814."""

from typing import Any

import pytest
from gateway_server import Server, Session

DEVICE = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
DATA = {"algorithm": "org.matrix.msc3814.v2", "device_pickle": "pickle", "nonce": "nonce"}


def body_of(user_id: str, device_id: str, **more: Any) -> dict[str, Any]:
    keys = {
        "user_id": user_id,
        "device_id": device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {f"ed25519:{device_id}": "A" * 43, f"curve25519:{device_id}": "A" * 43},
        "signatures": {user_id: {f"ed25519:{device_id}": "A" * 86}},
        "dehydrated": True,
    }
    one_time = {"signed_curve25519:AAAAAQ": {"key": "A" * 43, "signatures": keys["signatures"]}}
    return {
        "device_id": device_id,
        "device_data": DATA,
        "device_keys": keys,
        "one_time_keys": one_time,
        "initial_device_display_name": "asleep",
        **more,
    }


@pytest.fixture
async def alice(server: Server) -> Session:
    return await server.register("alice")


async def send(sender: Session, user_id: str, txn_id: str, *devices: str) -> None:
    messages = {user_id: {device_id: {"for": device_id, "number": txn_id} for device_id in devices}}
    reply = await sender.put(f"/sendToDevice/m.room.encrypted/{txn_id}", {"messages": messages})
    assert reply.json() == {}


async def test_it_sleeps_hears_and_is_woken(server: Server, alice: Session) -> None:
    assert (await alice.get(DEVICE)).json()["errcode"] == "M_NOT_FOUND"
    made = await alice.put(DEVICE, body_of(alice.user_id, "SLEEPING"))
    assert (made.status_code, made.json()) == (200, {"device_id": "SLEEPING"})
    assert (await alice.get(DEVICE)).json() == {"device_id": "SLEEPING", "device_data": DATA}
    bob = await server.register("bob")
    shown = (await bob.post("/keys/query", {"device_keys": {alice.user_id: []}})).json()["device_keys"]
    assert shown[alice.user_id]["SLEEPING"]["dehydrated"] is True
    assert shown[alice.user_id]["SLEEPING"]["unsigned"] == {"device_display_name": "asleep"}
    asked = {"one_time_keys": {alice.user_id: {"SLEEPING": "signed_curve25519"}}}
    assert list((await bob.post("/keys/claim", asked)).json()["one_time_keys"][alice.user_id]) == ["SLEEPING"]
    for txn_id in ("1", "2"):
        await send(bob, alice.user_id, txn_id, "SLEEPING")
    first = (await alice.post(f"{DEVICE}/SLEEPING/events", {})).json()
    assert [(one["sender"], one["type"], one["content"]["number"]) for one in first["events"]] == [
        (bob.user_id, "m.room.encrypted", "1"),
        (bob.user_id, "m.room.encrypted", "2"),
    ]
    rest = (await alice.get(f"{DEVICE}/SLEEPING/events?next_batch={first['next_batch']}")).json()
    assert rest == {"events": [], "next_batch": first["next_batch"]}
    assert (await alice.delete(DEVICE)).json() == {"device_id": "SLEEPING"}
    assert (await alice.delete(DEVICE)).json()["errcode"] == "M_NOT_FOUND"
    shown = (await bob.post("/keys/query", {"device_keys": {alice.user_id: []}})).json()["device_keys"]
    assert shown == {alice.user_id: {}}


async def test_a_new_one_takes_the_place_of_the_old(server: Server, alice: Session) -> None:
    for device_id in ("FIRST", "SECOND", "SECOND"):
        assert (await alice.put(DEVICE, body_of(alice.user_id, device_id))).status_code == 200
    await send(alice, alice.user_id, "1", "FIRST", "SECOND")
    devices = [device["device_id"] for device in (await alice.get("/devices")).json()["devices"]]
    assert set(devices) == {alice.device_id, "SECOND"}
    assert (await alice.post(f"{DEVICE}/FIRST/events", {})).json()["errcode"] == "M_FORBIDDEN"
    assert len((await alice.post(f"{DEVICE}/SECOND/events", {})).json()["events"]) == 1


async def test_what_is_refused(server: Server, alice: Session) -> None:
    taken = await alice.put(DEVICE, body_of(alice.user_id, alice.device_id))
    assert (taken.status_code, taken.json()["errcode"]) == (400, "M_INVALID_PARAM")
    good = body_of(alice.user_id, "SLEEPING")
    for wrong, errcode in (
        ({"device_id": None}, "M_MISSING_PARAM"),
        ({"device_id": "x" * 300}, "M_INVALID_PARAM"),
        ({"device_data": None}, "M_MISSING_PARAM"),
        ({"device_data": "text"}, "M_BAD_JSON"),
        ({"device_data": {"a": "x" * 70_000}}, "M_INVALID_PARAM"),
        ({"device_keys": None}, "M_MISSING_PARAM"),
        ({"device_keys": {**good["device_keys"], "device_id": "OTHER"}}, "M_INVALID_PARAM"),
    ):
        reply = await alice.put(DEVICE, {**good, **wrong})
        assert (reply.status_code, reply.json()["errcode"]) == (400, errcode), wrong
    assert (await alice.get(DEVICE)).status_code == 404
    assert (await alice.get(f"{DEVICE}/SLEEPING/events")).json()["errcode"] == "M_NOT_FOUND"
    await alice.put(DEVICE, good)
    assert (await alice.get(f"{DEVICE}/SLEEPING/events?next_batch=x")).json()["errcode"] == "M_INVALID_PARAM"
    bob = await server.register("bob")
    assert (await bob.get(f"{DEVICE}/SLEEPING/events")).json()["errcode"] == "M_NOT_FOUND"

"""Keys and messages of devices, and media, between Tessera and a real Synapse."""

import secrets
from typing import Any

import pytest

from tests.fixtures.meeting import Meeting, SignedKeys, Watch, eventually
from tests.fixtures.whole_server import Device

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def keys_of(asker: Device, owner: Device) -> dict[str, Any]:
    """Device ID -> device keys of an account."""
    found = await asker.post("/keys/query", {"device_keys": {owner.user_id: []}})
    devices: dict[str, Any] = found["device_keys"].get(owner.user_id, {})
    return devices


async def test_keys_and_messages_of_devices_go_both_ways(meeting: Meeting) -> None:
    await meeting.share_room()
    watches = {one.user_id: await Watch.begin(one) for one in (meeting.alice, meeting.bob)}
    for sender, other in ((meeting.alice, meeting.bob), (meeting.bob, meeting.alice)):
        watch = watches[other.user_id]
        watch.changed.clear()
        signed = SignedKeys.of(sender)
        await sender.post("/keys/upload", {"device_keys": signed.device_keys, "one_time_keys": signed.one_time})
        await watch.until(lambda: sender.user_id in watch.changed, "a changed device list")  # noqa: B023

        async def known(asker: Device = other, owner: Device = sender) -> Any:
            return (await keys_of(asker, owner)).get(owner.device_id)

        keys = await eventually(known, "device keys")
        assert keys["keys"] == signed.device_keys["keys"]
        assert keys["signatures"] == signed.device_keys["signatures"]
        asked = {sender.user_id: {sender.device_id: "signed_curve25519"}}
        claimed = await other.post("/keys/claim", {"one_time_keys": asked})
        assert claimed["one_time_keys"][sender.user_id][sender.device_id] == signed.one_time, claimed
        for number in range(3):
            messages = {other.user_id: {("*" if number else other.device_id): {"n": number}}}
            await sender.put(f"/sendToDevice/m.secret/{secrets.token_hex(8)}", {"messages": messages})
        wanted = [{"type": "m.secret", "sender": sender.user_id, "content": {"n": number}} for number in range(3)]
        await watch.until(lambda: watch.to_device == wanted, "three messages to the device")  # noqa: B023


@pytest.mark.parametrize("version", ["12"], indirect=True)
async def test_a_second_device_becomes_known_and_is_forgotten(meeting: Meeting) -> None:
    await meeting.share_room()
    owner, other = meeting.alice, meeting.bob
    await owner.post("/keys/upload", {"device_keys": SignedKeys.of(owner).device_keys})
    await eventually(lambda: keys_of(other, owner), "the first device")
    watch = await Watch.begin(other)
    second = await meeting.alices_api.login(owner.user_id)
    await second.post("/keys/upload", {"device_keys": SignedKeys.of(second).device_keys})
    await watch.until(lambda: owner.user_id in watch.changed, "a changed device list")

    async def count(wanted: int) -> bool:
        return len(await keys_of(other, owner)) == wanted

    await eventually(lambda: count(2), "the second device")
    watch.changed.clear()
    await second.post("/logout")
    await watch.until(lambda: owner.user_id in watch.changed, "a changed device list")
    await eventually(lambda: count(1), "one device")


@pytest.mark.parametrize("version", ["12"], indirect=True)
async def test_media_are_fetched_from_the_other_server(meeting: Meeting) -> None:
    owner, asker = meeting.alice, meeting.bob
    content = f"bytes of {owner.user_id}\r\n".encode() * 20_000
    answer = await meeting.alices_api.http.post(
        "/_matrix/media/v3/upload?filename=notes.txt",
        content=content,
        headers={"Authorization": f"Bearer {owner.token}", "Content-Type": "text/plain"},
    )
    uri = answer.json()["content_uri"].removeprefix("mxc://")
    http, headers = meeting.bobs_api.http, {"Authorization": f"Bearer {asker.token}"}
    for _ in range(2):
        found = await http.get(f"/_matrix/client/v1/media/download/{uri}", headers=headers)
        assert (found.status_code, found.content == content) == (200, True), found.text[:300]
    assert found.headers["content-type"].startswith("text/plain")
    assert "notes.txt" in found.headers["content-disposition"]
    missing = await http.get(
        f"/_matrix/client/v1/media/download/{uri.partition('/')[0]}/none{secrets.token_hex(8)}", headers=headers
    )
    assert missing.status_code in (404, 502)


@pytest.mark.parametrize("version", ["12"], indirect=True)
async def test_a_thumbnail_is_fetched_from_the_other_server(meeting: Meeting) -> None:
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301"
        "0100c9fe92ef0000000049454e44ae426082"
    )
    answer = await meeting.alices_api.http.post(
        "/_matrix/media/v3/upload",
        content=png,
        headers={"Authorization": f"Bearer {meeting.alice.token}", "Content-Type": "image/png"},
    )
    uri = answer.json()["content_uri"].removeprefix("mxc://")
    found = await meeting.bobs_api.http.get(
        f"/_matrix/client/v1/media/thumbnail/{uri}?width=32&height=32&method=scale",
        headers={"Authorization": f"Bearer {meeting.bob.token}"},
    )
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png"), found.text[:300]

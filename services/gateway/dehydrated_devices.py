"""A device that sleeps on the server, so that keys sent to a user who is logged in nowhere are not lost.

It has keys and an inbox as any device. Whoever logs in next takes its data, wakes it with a secret that the server
does not know, reads its inbox and deletes it.

Spec: MSC3814 (dehydrated devices with SSSS).
"""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.keys import UploadedKeys, check_upload, put_keys
from services.gateway.logout import end_sessions
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.registration import MAX_DEVICE_ID_LENGTH, MAX_DEVICE_NAME_LENGTH, optional_text
from services.gateway.routing import CurrentRequester, JsonObject, absolute_router
from services.gateway.sessions import end_devices
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import dehydrated_devices, device_keys, to_device
from tessera.storage.dehydrated_devices import DehydratedDevice

router = absolute_router()

MAX_DATA_BYTES = 65_536
PAGE = 100
_PATH = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
_NONE = "You have no dehydrated device"


@router.put(_PATH)
async def put_dehydrated_device(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Let a device sleep, in place of the one before."""
    device = parse_device(body)
    keys = check_upload(body, requester.user_id, device.device_id)
    if keys.device is None:
        raise MissingParam("device_keys is missing")
    name = optional_text(body, "initial_device_display_name")
    await replace_dehydrated(gateway, requester.user_id, device, name, keys)
    return json_reply({"device_id": device.device_id})


@router.get(_PATH)
async def get_dehydrated_device(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The data that wakes the device."""
    found = await _get_dehydrated(gateway, requester.user_id)
    return json_reply({"device_id": found.device_id, "device_data": orjson.Fragment(found.data)})


@router.delete(_PATH)
async def delete_dehydrated_device(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Delete the device with its keys and its inbox."""
    found = await _get_dehydrated(gateway, requester.user_id)
    await end_sessions(gateway, requester.user_id, [found.device_id])
    return json_reply({"device_id": found.device_id})


@router.get(_PATH + "/{device_id}/events")
async def get_dehydrated_device_events(
    device_id: str, requester: CurrentRequester, gateway: GatewayDep, next_batch: str | None = None
) -> Response:
    """A page of what the device was sent; it stays until the device is deleted."""
    return json_reply(await read_inbox(gateway, requester.user_id, device_id, next_batch))


@router.post(_PATH + "/{device_id}/events")
async def post_dehydrated_device_events(
    device_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """The same as older clients ask."""
    return json_reply(await read_inbox(gateway, requester.user_id, device_id, optional_text(body, "next_batch")))


def parse_device(body: Mapping[str, Any]) -> DehydratedDevice:
    """The device of a request.

    Raises:
        MissingParam, BadJson, InvalidParam
    """
    device_id, data = optional_text(body, "device_id"), body.get("device_data")
    if not device_id:
        raise MissingParam("device_id is missing")
    if len(device_id) > MAX_DEVICE_ID_LENGTH or not device_id.isprintable():
        raise InvalidParam("device_id is too long or has unprintable characters")
    if data is None:
        raise MissingParam("device_data is missing")
    if not isinstance(data, Mapping):
        raise BadJson("device_data must be an object")
    encoded = orjson.dumps(data)
    if len(encoded) > MAX_DATA_BYTES:
        raise InvalidParam(f"device_data is larger than {MAX_DATA_BYTES} bytes")
    return DehydratedDevice(device_id, encoded)


async def replace_dehydrated(
    gateway: GatewayDeps, user_id: UserId, device: DehydratedDevice, name: str | None, keys: UploadedKeys
) -> None:
    """Delete the sleeping device that is there, and add this one with its keys.

    Raises:
        InvalidParam: a device with a session has this name.
    """
    ended = None
    async with gateway.accounts.transaction() as tx:
        await device_keys.lock_device(tx, user_id, "")  # one such request of a user after the other
        before = await dehydrated_devices.find_dehydrated(tx, user_id)
        if before is not None:
            ended = await end_devices(tx, user_id, [before.device_id])
        shown = None if name is None else name[:MAX_DEVICE_NAME_LENGTH]
        now_ms = gateway.clock.now_ms()
        if not await dehydrated_devices.add_dehydrated(tx, user_id, device, shown, now_ms=now_ms):
            raise InvalidParam("device_id is the name of another device")
        _, stored = await put_keys(tx, user_id, device.device_id, keys)
    if ended is not None:
        await ended.publish(gateway.fanout)
    await stored.publish(gateway.fanout)


async def read_inbox(gateway: GatewayDeps, user_id: UserId, device_id: str, since: str | None) -> dict[str, Any]:
    """The next messages of the sleeping device, and where the page after them begins.

    Raises:
        Forbidden: that is another device, which reads its inbox by /sync.
    """
    if since is not None and (not since.isascii() or not since.isdigit() or len(since) > 18):
        raise InvalidParam("next_batch is not a token of this server")
    async with gateway.accounts.reading() as tx:
        found = await dehydrated_devices.find_dehydrated(tx, user_id)
        if found is None:
            raise NotFound(_NONE)
        if found.device_id != device_id:
            raise Forbidden("This is not your dehydrated device")
        page = await to_device.list_messages(tx, user_id, device_id, int(since or 0), limit=PAGE)
    events = [{"sender": one.sender, "type": one.type, "content": orjson.Fragment(one.content)} for one in page]
    return {"events": events, "next_batch": str(page[-1].position) if page else since or "0"}


async def _get_dehydrated(gateway: GatewayDeps, user_id: UserId) -> DehydratedDevice:
    async with gateway.accounts.reading() as tx:
        found = await dehydrated_devices.find_dehydrated(tx, user_id)
    if found is None:
        raise NotFound(_NONE)
    return found

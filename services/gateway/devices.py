"""The user's devices. Spec: C-S API §Device management."""

from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.logout import end_sessions
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.registration import MAX_DEVICE_NAME_LENGTH, optional_text
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from services.gateway.uia import PASSWORD_FLOWS, UiaRequest
from tessera.fanout import DeviceWake
from tessera.http.errors import BadJson, InvalidParam, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import device_changes, devices
from tessera.storage.device_changes import DeviceChange
from tessera.storage.devices import Device

router = client_router()

MAX_DELETED_AT_ONCE = 1_000


@router.get("/devices")
async def get_devices(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """All devices of the user."""
    async with gateway.accounts.reading() as tx:
        found = await devices.list_devices(tx, requester.user_id)
    return json_reply({"devices": [device_json(device) for device in found]})


@router.get("/devices/{device_id}")
async def get_device(device_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """One device of the user."""
    async with gateway.accounts.reading() as tx:
        device = await devices.find_device(tx, requester.user_id, device_id)
    if device is None:
        raise NotFound("No such device")
    return json_reply(device_json(device))


@router.put("/devices/{device_id}")
async def update_device(device_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Rename a device."""
    await rename_device(gateway, requester.user_id, device_id, optional_text(body, "display_name"))
    return json_reply({})


@router.delete("/devices/{device_id}")
async def delete_device(
    device_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Delete a device after interactive authentication."""
    if requester.appservice_id is None:  # those have no password, and need none
        await gateway.uia.require(
            UiaRequest("deleteDevice", (requester.user_id, device_id), PASSWORD_FLOWS, requester.user_id),
            body.get("auth"),
        )
    await end_sessions(gateway, requester.user_id, [device_id])
    return json_reply({})


@router.post("/delete_devices")
async def delete_devices(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Delete several devices after one interactive authentication."""
    device_ids = _parse_device_ids(body)
    if requester.appservice_id is None:
        await gateway.uia.require(
            UiaRequest("deleteDevices", (requester.user_id, *device_ids), PASSWORD_FLOWS, requester.user_id),
            body.get("auth"),
        )
    await end_sessions(gateway, requester.user_id, device_ids)
    return json_reply({})


async def rename_device(gateway: GatewayDeps, user_id: UserId, device_id: str, display_name: str | None) -> None:
    """Give a device another name; None leaves it. Whoever sees its keys is told of the new name.

    Raises:
        NotFound: the user has no such device.
    """
    if display_name is not None and len(display_name) > MAX_DEVICE_NAME_LENGTH:
        raise InvalidParam(f"display_name is longer than {MAX_DEVICE_NAME_LENGTH} characters")
    position = None
    async with gateway.accounts.transaction() as tx:
        if display_name is None:
            known: bool | None = await devices.find_device(tx, user_id, device_id) is not None or None
        else:
            known = await devices.set_display_name(tx, user_id, device_id, display_name)
            if known:
                position = await device_changes.add_changes(tx, [DeviceChange(user_id, device_id)])
    if known is None:
        raise NotFound("No such device")
    if position is not None:
        await gateway.fanout.publish_device_wake(DeviceWake(position, (user_id,)))


def device_json(device: Device) -> dict[str, Any]:
    """A device as clients see their own."""
    fields = {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ts": device.last_seen_ts,
        "last_seen_ip": device.last_seen_ip,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _parse_device_ids(body: dict[str, Any]) -> list[str]:
    device_ids = body.get("devices")
    if device_ids is None:
        raise MissingParam("devices is missing")
    if not isinstance(device_ids, list) or not all(isinstance(device_id, str) for device_id in device_ids):
        raise BadJson("devices must be a list of strings")
    if len(device_ids) > MAX_DELETED_AT_ONCE:
        raise InvalidParam(f"devices has more than {MAX_DELETED_AT_ONCE} entries")
    return sorted(set(device_ids))

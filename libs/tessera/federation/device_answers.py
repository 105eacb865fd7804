"""What other servers say of their users' devices and keys, checked before it is kept or passed on.

Spec: S-S API §Device Management, §End-to-End Encryption.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import orjson

from matrixcore.identifiers import UserId
from tessera.storage.remote_devices import MAX_DEVICES

MAX_KEYS_BYTES = 64 << 10  # of one device or cross-signing key
MAX_NAME = 255
MAX_STREAM_ID = (1 << 53) - 1


class DeviceAnswer(NamedTuple):
    """The answer of GET /user/devices."""

    stream_id: int
    devices: Mapping[str, bytes]
    master_key: bytes | None
    self_signing_key: bytes | None


def check_device(user_id: UserId, device_id: str, keys: object, display_name: object = None) -> bytes | None:
    """A device's keys as clients are served them, with its name; None if they are not those of the device.

    Whatever a server says of other devices than the one that it names must not reach a client.
    """
    if not isinstance(keys, Mapping) or keys.get("user_id") != user_id or keys.get("device_id") != device_id:
        return None
    if not isinstance(keys.get("keys"), Mapping) or not isinstance(keys.get("algorithms"), list):
        return None
    served = {name: value for name, value in keys.items() if name != "unsigned"}
    unsigned = keys.get("unsigned")
    if display_name is None and isinstance(unsigned, Mapping):
        display_name = unsigned.get("device_display_name")
    served["unsigned"] = {"device_display_name": display_name[:MAX_NAME]} if isinstance(display_name, str) else {}
    return _dumped(served)


def check_signing_key(user_id: UserId, usage: str, key: object) -> bytes | None:
    """A cross-signing key as clients are served it; None if it is not the user's, or for another use."""
    if not isinstance(key, Mapping) or key.get("user_id") != user_id:
        return None
    usages, keys = key.get("usage"), key.get("keys")
    if not isinstance(usages, list) or usage not in usages or not isinstance(keys, Mapping) or len(keys) != 1:
        return None
    return _dumped(dict(key))


def parse_device_answer(user_id: UserId, answer: Mapping[str, Any]) -> DeviceAnswer | None:
    """The answer of a user's server; None if it is of no use. Devices without keys are left out."""
    stream_id, devices = answer.get("stream_id"), answer.get("devices")
    if answer.get("user_id") != user_id or not isinstance(devices, list):
        return None
    if not is_stream_id(stream_id):
        return None
    checked: dict[str, bytes] = {}
    for device in devices[:MAX_DEVICES]:
        if isinstance(device, Mapping) and is_device_id(device_id := device.get("device_id")):
            keys = check_device(user_id, device_id, device.get("keys"), device.get("device_display_name"))
            if keys is not None:
                checked[device_id] = keys
    return DeviceAnswer(
        stream_id,
        checked,
        check_signing_key(user_id, "master", answer.get("master_key")),
        check_signing_key(user_id, "self_signing", answer.get("self_signing_key")),
    )


def is_stream_id(value: object) -> TypeGuard[int]:
    """Whether a value can be a stream_id."""
    return type(value) is int and 0 <= value <= MAX_STREAM_ID


def is_device_id(value: object) -> TypeGuard[str]:
    """Whether a value can be a device ID that is stored."""
    return isinstance(value, str) and 0 < len(value) <= 255 and "\0" not in value


def _dumped(value: Mapping[str, Any]) -> bytes | None:
    try:
        dumped = orjson.dumps(value)
    except TypeError:  # an integer that no JSON here holds
        return None
    return dumped if len(dumped) <= MAX_KEYS_BYTES else None

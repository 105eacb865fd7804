"""Checks of what clients upload as keys. Pure: mappings in, canonical bytes or a refusal out.

Spec: C-S API §Device keys, §One-time and fallback keys, §Cross-signing.
"""

from collections.abc import Mapping
from typing import Any

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import UserId
from matrixcore.signing import KEY_BYTES, decode_base64, signed_bytes
from tessera.http.errors import InvalidParam
from tessera.storage.cross_signing import CrossSigningKey, Usage
from tessera.storage.one_time_keys import PublicKey

# A device signs its master key, an account has tens of devices: far above what honest clients send at once.
MAX_ONE_TIME_KEYS = 1000
MAX_NAME_LENGTH = 255


def check_device_keys(given: Any, user_id: UserId, device_id: str) -> bytes:
    """The canonical bytes of uploaded device keys, without `unsigned`.

    Raises:
        InvalidParam: a field is missing or of the wrong type, or the keys are those of another device.
    """
    keys = _mapping(given, "device_keys")
    if keys.get("user_id") != user_id:
        raise InvalidParam("device_keys.user_id is not the user of this session")
    if keys.get("device_id") != device_id:
        raise InvalidParam("device_keys.device_id is not the device of this session")
    algorithms = keys.get("algorithms")
    if not isinstance(algorithms, list) or not all(isinstance(name, str) for name in algorithms):
        raise InvalidParam("device_keys.algorithms must be a list of strings")
    for name, value in _mapping(keys.get("keys"), "device_keys.keys").items():
        if not isinstance(value, str):
            raise InvalidParam("device_keys.keys must map names to strings")
        if name.partition(":")[2] != device_id:
            raise InvalidParam("a name in device_keys.keys is not <algorithm>:<device_id>")
    _check_signatures(keys.get("signatures"), "device_keys.signatures")
    return encode_canonical_json({name: value for name, value in keys.items() if name != "unsigned"})


def check_one_time_keys(given: Any, field: str) -> list[PublicKey]:
    """The keys of `one_time_keys`.

    Raises:
        InvalidParam: a name without an algorithm, a key that is neither a string nor a key object, or too many.
    """
    keys = _mapping(given, field)
    if len(keys) > MAX_ONE_TIME_KEYS:
        raise InvalidParam(f"{field} holds more than {MAX_ONE_TIME_KEYS} keys")
    return [_check_one_time_key(name, value, field) for name, value in keys.items()]


def check_fallback_keys(given: Any, field: str) -> list[PublicKey]:
    """The keys of `fallback_keys`: at most one for each algorithm.

    Raises:
        InvalidParam: as `check_one_time_keys`, or two keys of one algorithm.
    """
    keys = check_one_time_keys(given, field)
    if len({key.algorithm for key in keys}) < len(keys):
        raise InvalidParam(f"{field} holds two keys of one algorithm")
    return keys


def check_cross_signing_key(given: Any, usage: Usage, user_id: UserId) -> CrossSigningKey:
    """An uploaded cross-signing key; its signatures are not looked at.

    Raises:
        InvalidParam: it is another user's, for another use, or does not hold exactly one Ed25519 key under its name.
    """
    field = f"{usage}_key"
    key = _mapping(given, field)
    if key.get("user_id") != user_id:
        raise InvalidParam(f"{field}.user_id is not the user of this session")
    usages = key.get("usage")
    if not isinstance(usages, list) or usage not in usages:
        raise InvalidParam(f"{field}.usage does not name {usage}")
    public_keys = _mapping(key.get("keys"), f"{field}.keys")
    if len(public_keys) != 1:
        raise InvalidParam(f"{field}.keys must hold exactly one key")
    ((name, value),) = public_keys.items()
    if not isinstance(value, str) or name != f"ed25519:{value}":
        raise InvalidParam(f"{field}.keys must map ed25519:<public key> to the public key")
    if public_key_bytes(value) is None:
        raise InvalidParam(f"{field}.keys does not hold an Ed25519 public key")
    if "signatures" in key:
        _check_signatures(key["signatures"], f"{field}.signatures")
    content = {name: value for name, value in key.items() if name != "unsigned"}
    return CrossSigningKey(usage, value, encode_canonical_json(content))


def public_key_bytes(text: object) -> bytes | None:
    """The 32 bytes of a base64 public key, None if it is none."""
    if not isinstance(text, str) or len(text) > MAX_NAME_LENGTH:
        return None
    try:
        key = decode_base64(text)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def is_same_key(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two objects say the same apart from signatures and unsigned data."""
    return signed_bytes(one) == signed_bytes(other)


def merge_signatures(key: Mapping[str, Any], user_id: UserId, signatures: Mapping[str, str]) -> bytes:
    """The canonical bytes of a key with signatures of one user (key ID -> signature) added to those it has."""
    present = key.get("signatures") or {}
    merged = {**present, user_id: {**present.get(user_id, {}), **signatures}}
    return encode_canonical_json({**key, "signatures": merged})


def _check_one_time_key(name: str, value: Any, field: str) -> PublicKey:
    algorithm, colon, key_id = name.partition(":")
    if not (algorithm and colon and key_id) or len(name) > MAX_NAME_LENGTH:
        raise InvalidParam(f"a name in {field} is not <algorithm>:<key_id>")
    if isinstance(value, Mapping):
        if not isinstance(value.get("key"), str):
            raise InvalidParam(f"a key object in {field} has no string `key`")
        _check_signatures(value.get("signatures"), f"signatures in {field}")
    elif not isinstance(value, str):
        raise InvalidParam(f"{field} must map names to strings or key objects")
    return PublicKey(algorithm, key_id, encode_canonical_json(value))


def _check_signatures(given: Any, field: str) -> None:
    for signatures in _mapping(given, field).values():
        if not isinstance(signatures, Mapping) or not all(isinstance(value, str) for value in signatures.values()):
            raise InvalidParam(f"{field} must map users to key IDs to signatures")


def _mapping(given: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidParam(f"{field} must be an object")
    return given

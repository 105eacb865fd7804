"""The documents in which servers publish their keys.

Spec: S-S API §Publishing Keys, §Querying Keys Through Another Server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from matrixcore.signing import ALGORITHM, KEY_BYTES, SigningKey, decode_base64, encode_base64, sign_json, verify_json

MAX_KEYS = 200  # of each kind in one document
MAX_KEY_ID_LENGTH = 100
# A key is believed so long without asking again, whatever its server says.
MAX_VALIDITY_MS = 7 * 86_400_000


class InvalidKeyDocument(ValueError):
    """No key document, or one that proves nothing."""


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A public key of a server.

    Attributes:
        valid_until_ts: the last moment (milliseconds since the epoch) of whose events and requests it is believed.
        is_old: whether its server no longer uses it, so that this moment is final.
    """

    public_key: bytes
    valid_until_ts: int
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class KeyDocument:
    """A document whose own signature has been checked.

    Attributes:
        valid_until_ts: as the server says; `keys` have it cut.
        keys: key ID -> key, old ones too.
    """

    server_name: ServerName
    valid_until_ts: int
    keys: Mapping[str, ServerKey]


def read_key_document(document: Mapping[str, Any], *, now_ms: int) -> KeyDocument:
    """The keys of a document that its own server has signed.

    Raises:
        InvalidKeyDocument: a wrong shape, or no signature by any current key, or a wrong one.
    """
    try:
        server_name = parse_server_name(document.get("server_name"))
    except InvalidIdentifier as error:
        raise InvalidKeyDocument(f"server_name: {error}") from None
    valid_until_ts = _timestamp(document.get("valid_until_ts"), "valid_until_ts")
    believed_until = min(valid_until_ts, now_ms + MAX_VALIDITY_MS)
    current = _keys_in(document.get("verify_keys"), "verify_keys")
    keys = {key_id: ServerKey(public_key, believed_until) for key_id, (public_key, _) in current.items()}
    if not verify_json(document, server_name, {key_id: key.public_key for key_id, key in keys.items()}, strict=False):
        raise InvalidKeyDocument("not signed with the server's own keys")
    for key_id, (public_key, entry) in _keys_in(document.get("old_verify_keys", {}), "old_verify_keys").items():
        expired_ts = _timestamp(entry.get("expired_ts"), "expired_ts")
        keys.setdefault(key_id, ServerKey(public_key, expired_ts, is_old=True))
    return KeyDocument(server_name, valid_until_ts, keys)


def make_key_document(
    server_name: ServerName,
    signing_keys: Iterable[SigningKey],
    *,
    current: Mapping[str, bytes],
    old: Mapping[str, tuple[bytes, int]],
    valid_until_ts: int,
) -> dict[str, Any]:
    """What a server says of itself, signed with each of its keys.

    Args:
        current: key ID -> public key of further keys that it uses (in another process, say).
        old: key ID -> (public key, expired_ts) of those that it no longer uses.
    """
    signers = list(signing_keys)
    verify = {**current, **{key.key_id: key.public_key for key in signers}}
    document: dict[str, Any] = {
        "server_name": server_name,
        "valid_until_ts": valid_until_ts,
        "verify_keys": {key_id: {"key": encode_base64(public)} for key_id, public in verify.items()},
        "old_verify_keys": {
            key_id: {"key": encode_base64(public), "expired_ts": expired_ts}
            for key_id, (public, expired_ts) in old.items()
            if key_id not in verify
        },
    }
    for key in signers:
        document = sign_json(document, server_name, key)
    return document


def _keys_in(entries: object, name: str) -> dict[str, tuple[bytes, Mapping[str, Any]]]:
    """Key ID -> (public key, entry) of the Ed25519 keys; other algorithms are passed over."""
    if not isinstance(entries, Mapping) or len(entries) > MAX_KEYS:
        raise InvalidKeyDocument(f"{name} must be an object of at most {MAX_KEYS} keys")
    found: dict[str, tuple[bytes, Mapping[str, Any]]] = {}
    for key_id, entry in entries.items():
        if not key_id.startswith(ALGORITHM + ":") or len(key_id) > MAX_KEY_ID_LENGTH or "\0" in key_id:
            continue
        try:
            public_key = decode_base64(entry["key"])
        except (TypeError, KeyError, ValueError, AttributeError):
            raise InvalidKeyDocument(f"{name} has an entry without a key") from None
        if len(public_key) != KEY_BYTES:
            raise InvalidKeyDocument(f"{name} has a key of the wrong length")
        found[key_id] = (public_key, entry)
    return found


def _timestamp(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise InvalidKeyDocument(f"{name} must be a timestamp")
    return value

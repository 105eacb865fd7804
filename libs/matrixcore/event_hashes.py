"""The two hashes of an event, and the event ID that comes from one of them.

Spec: S-S API §Calculating the reference hash, §Calculating the content hash; Room Versions §Event IDs.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import EventId
from matrixcore.redaction import redact
from matrixcore.room_versions import EventIdFormat, RoomVersionRules
from matrixcore.signing import decode_base64, encode_base64, encode_base64_urlsafe

_NOT_IN_CONTENT_HASH = frozenset(("hashes", "signatures", "unsigned"))


def content_hash(fields: Mapping[str, Any], rules: RoomVersionRules) -> bytes:
    """The SHA-256 over the whole event, redactable parts included.

    Raises:
        BadJson: the event cannot be canonical JSON.
    """
    hashed = {key: value for key, value in fields.items() if key not in _NOT_IN_CONTENT_HASH}
    return hashlib.sha256(encode_canonical_json(hashed, strict=rules.strict_canonical_json)).digest()


def check_content_hash(fields: Mapping[str, Any], rules: RoomVersionRules) -> bool:
    """Whether the hash in an event fits its content; if not, only its redacted form may be used."""
    hashes = fields.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, Mapping) else None
    if not isinstance(claimed, str):
        return False
    try:
        return decode_base64(claimed) == content_hash(fields, rules)
    except ValueError:
        return False


def essential_bytes(fields: Mapping[str, Any], rules: RoomVersionRules) -> bytes:
    """The canonical JSON of the redacted event without signatures: what the reference hash and signatures cover.

    Raises:
        BadJson: the event cannot be canonical JSON.
    """
    essential = redact(fields, rules)
    essential.pop("signatures", None)
    return encode_canonical_json(essential, strict=rules.strict_canonical_json)


def reference_hash(fields: Mapping[str, Any], rules: RoomVersionRules) -> bytes:
    """The SHA-256 over the essential part of an event.

    Raises:
        BadJson: the event cannot be canonical JSON.
    """
    return hashlib.sha256(essential_bytes(fields, rules)).digest()


def reference_hash_base64(fields: Mapping[str, Any], rules: RoomVersionRules) -> str:
    """The reference hash as events of versions 1 and 2 cite it beside an event ID."""
    return encode_base64(reference_hash(fields, rules))


def event_id_of_hash(digest: bytes, rules: RoomVersionRules) -> EventId:
    """The event ID of a reference hash, in room versions that make it so (3 on)."""
    if rules.event_id_format is EventIdFormat.HASH_URLSAFE:
        return EventId("$" + encode_base64_urlsafe(digest))
    return EventId("$" + encode_base64(digest))


def compute_event_id(fields: Mapping[str, Any], rules: RoomVersionRules) -> EventId:
    """The event ID: from the reference hash, or in versions 1 and 2 the one that the event carries.

    Raises:
        BadJson: the event cannot be canonical JSON.
        KeyError: version 1 or 2, and there is no `event_id`.
    """
    if rules.event_id_format is EventIdFormat.GIVEN:
        return EventId(fields["event_id"])
    return event_id_of_hash(reference_hash(fields, rules), rules)

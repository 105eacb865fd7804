"""Making new events: hashing, signing and naming them, each part serialised once.

Spec: S-S API §Adding hashes and signatures to outgoing events; Room Versions §Event format.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from matrixcore.canonical_json import BadJson, check_canonical, encode_canonical_json
from matrixcore.event_hashes import event_id_of_hash
from matrixcore.events import (
    MAX_AUTH_EVENTS,
    MAX_PDU_BYTES,
    MAX_PREV_EVENTS,
    Event,
    InvalidEvent,
    make_event,
)
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId, fits_in_bytes
from matrixcore.redaction import redact
from matrixcore.room_versions import EventIdFormat, RoomVersionRules
from matrixcore.signing import SigningKey, encode_base64


def build_event(
    *,
    rules: RoomVersionRules,
    room_id: RoomId | None,
    sender: UserId,
    event_type: str,
    state_key: str | None,
    content: Mapping[str, Any],
    origin_server_ts: int,
    depth: int,
    prev_events: Sequence[EventId],
    auth_events: Sequence[EventId],
    server_name: ServerName,
    signing_key: SigningKey,
    redacts: EventId | None = None,
    event_id: EventId | None = None,
    reference_hashes: Mapping[EventId, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Event:
    """Make a signed event of this server's own.

    Args:
        room_id: None for the create event of version 12 alone, whose hash becomes the room ID.
        content: must not be changed afterwards; the event keeps it.
        origin_server_ts: milliseconds.
        redacts: put where the room version keeps it.
        event_id: versions 1 and 2 only, where the caller chooses it (`$opaque:server`).
        reference_hashes: versions 1 and 2 only: the unpadded base64 of the reference hash of each
            event in `prev_events` and `auth_events`.
        extra: further fields of the event that are neither `unsigned` nor named here.

    Raises:
        InvalidEvent: a limit of the format is broken; `too_large` says which of 413 and 400 it is.
    """
    if not fits_in_bytes(event_type) or (state_key is not None and not fits_in_bytes(state_key)):
        raise InvalidEvent("type and state_key must not exceed 255 bytes", too_large=True)
    if len(prev_events) > MAX_PREV_EVENTS or len(auth_events) > MAX_AUTH_EVENTS:
        raise InvalidEvent("too many prev_events or auth_events")
    fields: dict[str, Any] = {
        "auth_events": list(auth_events),
        "content": content,
        "depth": depth,
        "origin_server_ts": origin_server_ts,
        "prev_events": list(prev_events),
        "sender": sender,
        "type": event_type,
    }
    if room_id is not None:
        fields["room_id"] = room_id
    if state_key is not None:
        fields["state_key"] = state_key
    if redacts is not None:
        if rules.redacts_in_content:
            fields["content"] = {**content, "redacts": redacts}
        else:
            fields["redacts"] = redacts
    if rules.event_id_format is EventIdFormat.GIVEN:
        if event_id is None or reference_hashes is None:
            raise InvalidEvent("this room version needs an event_id and the hashes of its references")
        fields["event_id"] = event_id
        fields["auth_events"] = [[ref, {"sha256": reference_hashes[ref]}] for ref in auth_events]
        fields["prev_events"] = [[ref, {"sha256": reference_hashes[ref]}] for ref in prev_events]
    if extra:
        fields = {**extra, **fields}
    return finish_event(fields, rules, server_name=server_name, signing_key=signing_key, room_id=room_id)


def finish_event(
    fields: Mapping[str, Any],
    rules: RoomVersionRules,
    *,
    server_name: ServerName,
    signing_key: SigningKey,
    room_id: RoomId | None = None,
) -> Event:
    """Hash, sign and name an event whose other fields are complete, as in the answer of make_join.

    Hashes, signatures and unsigned that it may already have are replaced. The format of the
    fields is the caller's business (`parse_event` for what a peer has sent).

    Raises:
        InvalidEvent: no canonical JSON, or too large.
    """
    bare = {key: value for key, value in fields.items() if key not in ("hashes", "signatures", "unsigned")}
    try:
        check_canonical(bare)
        # The content is serialised once; the other two forms take it over as bytes.
        content = orjson.Fragment(encode_canonical_json(bare["content"]))
        unhashed = {**bare, "content": content}
        digest = hashlib.sha256(encode_canonical_json(unhashed)).digest()
        hashes = {"sha256": encode_base64(digest)}
        essential = redact(bare, rules)
        essential["hashes"] = hashes
        signed = encode_canonical_json(essential)
        signatures = {server_name: {signing_key.key_id: signing_key.sign(signed)}}
        unhashed["hashes"] = hashes
        unhashed["signatures"] = signatures
        pdu = encode_canonical_json(unhashed)
    except BadJson as error:
        raise InvalidEvent(str(error)) from None
    if len(pdu) > MAX_PDU_BYTES:
        raise InvalidEvent(f"the event exceeds {MAX_PDU_BYTES} bytes", too_large=True)
    bare["hashes"] = hashes
    bare["signatures"] = signatures
    if rules.event_id_format is EventIdFormat.GIVEN:
        event_id = EventId(bare["event_id"])
    else:
        event_id = event_id_of_hash(hashlib.sha256(signed).digest(), rules)
    return make_event(bare, pdu, event_id, rules, room_id=room_id)

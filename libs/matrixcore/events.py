"""An event as the protocol sees it: received bytes with a typed view on top.

Spec: Room Versions §Event format; S-S API §PDUs; C-S API §Size limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson

from matrixcore.canonical_json import (
    InvalidJson,
    check_canonical,
    encode_canonical_json,
    parse_exact_json,
)
from matrixcore.event_hashes import compute_event_id
from matrixcore.identifiers import (
    EventId,
    InvalidIdentifier,
    RoomId,
    StateKey,
    UserId,
    fits_in_bytes,
    parse_event_id,
    parse_room_id,
    parse_server_name,
    parse_user_id,
)
from matrixcore.redaction import redact
from matrixcore.room_versions import EventIdFormat, RoomVersionRules

MAX_PDU_BYTES = 65_536
MAX_PREV_EVENTS = 20
MAX_AUTH_EVENTS = 10
# Deeper than clients may nest (100), as other servers allow more, but never so deep that answers
# which contain the event could not be encoded.
MAX_PDU_NESTING = 200

_MAX_INT64 = 2**63 - 1
_MAX_INT53 = 2**53 - 1


class InvalidEvent(ValueError):
    """A PDU that does not have the format of its room version; it is dropped.

    `too_large` tells the size limits from the rest (a client gets 413 M_TOO_LARGE for them).
    """

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.too_large = too_large


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One PDU, parsed once.

    `pdu` holds the canonical bytes that hashes and signatures cover (unknown fields included,
    `unsigned` not); `fields` is what they parse to and must never be changed. In room version 12
    the create event carries no room_id; `room_id` here is always set. `auth_events` never
    includes the implied create event of version 12.
    """

    event_id: EventId
    room_id: RoomId
    type: str
    state_key: str | None
    sender: UserId
    content: Mapping[str, Any]
    origin_server_ts: int
    depth: int
    prev_events: tuple[EventId, ...]
    auth_events: tuple[EventId, ...]
    redacts: EventId | None  # from the place where the room version keeps it
    fields: Mapping[str, Any]
    pdu: bytes
    rules: RoomVersionRules

    @property
    def is_state(self) -> bool:
        return self.state_key is not None

    @property
    def state_tuple(self) -> StateKey:
        """(type, state key) of a state event; a programming error for any other."""
        assert self.state_key is not None
        return self.type, self.state_key

    @property
    def membership(self) -> str | None:
        """`content.membership` where it is a string, of any event type."""
        membership = self.content.get("membership")
        return membership if isinstance(membership, str) else None


State = Mapping[StateKey, Event]


def parse_event(pdu: bytes | Mapping[str, Any], rules: RoomVersionRules) -> Event:
    """Check the format of a received PDU and give it its typed view.

    Neither signatures nor hashes are checked (`event_signing.check_event_signatures`,
    `event_hashes.check_content_hash`), and no authorisation rule. `unsigned` is dropped.

    Args:
        pdu: the JSON text, or what it was parsed to as part of a transaction. Only the text (or
            `canonical_json.parse_exact_json`) keeps the huge integers of room versions 1 to 5.

    Raises:
        InvalidEvent
    """
    try:
        parsed = _load_fields(pdu, rules) if isinstance(pdu, bytes) else pdu
        if not isinstance(parsed, Mapping):
            raise InvalidEvent("a PDU must be an object")
        fields = {key: value for key, value in parsed.items() if key != "unsigned"}
        strict = rules.strict_canonical_json
        if strict:
            check_canonical(fields, max_depth=MAX_PDU_NESTING)
        _check_format(fields, rules)
        canonical = encode_canonical_json(fields, strict=strict)
        if len(canonical) > MAX_PDU_BYTES:
            raise InvalidEvent(f"the event exceeds {MAX_PDU_BYTES} bytes", too_large=True)
        return make_event(fields, canonical, compute_event_id(fields, rules), rules)
    except InvalidIdentifier as error:
        raise InvalidEvent(str(error)) from None
    except (InvalidJson, orjson.JSONDecodeError) as error:
        raise InvalidEvent(str(error)) from None


def load_event(pdu: bytes, event_id: EventId, rules: RoomVersionRules, *, room_id: RoomId | None = None) -> Event:
    """The event of bytes that this server has stored; nothing is checked again.

    Args:
        pdu: `Event.pdu`, as it was.
        room_id: spares a look into the event where the caller knows it.
    """
    return make_event(_load_fields(pdu, rules), pdu, event_id, rules, room_id=room_id)


def make_event(
    fields: Mapping[str, Any],
    pdu: bytes,
    event_id: EventId,
    rules: RoomVersionRules,
    *,
    room_id: RoomId | None = None,
) -> Event:
    """The typed view of fields whose format is known to be right. `pdu` must be their canonical JSON."""
    if room_id is None:
        given = fields.get("room_id")
        if rules.room_id_is_create_event_id and fields["type"] == "m.room.create":
            given = "!" + event_id[1:]
        room_id = cast("RoomId", given)
    if rules.event_id_format is EventIdFormat.GIVEN:
        prev_events = tuple(pair[0] for pair in fields["prev_events"])
        auth_events = tuple(pair[0] for pair in fields["auth_events"])
    else:
        prev_events = tuple(fields["prev_events"])
        auth_events = tuple(fields["auth_events"])
    event_type = fields["type"]
    content = fields["content"]
    return Event(
        event_id,
        room_id,
        event_type,
        fields.get("state_key"),
        fields["sender"],
        content,
        fields["origin_server_ts"],
        fields["depth"],
        prev_events,
        auth_events,
        _redacts(fields, content, rules) if event_type == "m.room.redaction" else None,
        fields,
        pdu,
        rules,
    )


def redact_event(event: Event) -> Event:
    """The redacted form of an event, with the same ID."""
    fields = redact(event.fields, event.rules)
    pdu = encode_canonical_json(fields, strict=event.rules.strict_canonical_json)
    content = fields["content"]
    redacts = _redacts(fields, content, event.rules) if event.type == "m.room.redaction" else None
    return replace(event, fields=fields, content=content, pdu=pdu, redacts=redacts)


def client_form(event: Event) -> bytes:
    """The event as clients see it, open at the end, so that a reader's own fields can follow.

    It has event_id, type, state_key, sender, origin_server_ts, content, and for redactions
    `redacts` in both places; room_id, unsigned and the closing brace are the caller's to add.

    Spec: C-S API §Room event format; Room Version 11 §Moving the redacts property.
    """
    return _dump_exactly(_client_fields(event.fields, event.event_id, event.rules))[:-1]


def client_fields(pdu: bytes, event_id: EventId, rules: RoomVersionRules) -> dict[str, Any]:
    """What `client_form` says, of bytes that this server has stored: a new mapping, for orjson to write."""
    shown = _client_fields(_load_fields(pdu, rules), event_id, rules)
    if not rules.strict_canonical_json:
        shown["content"] = orjson.Fragment(_dump_exactly(shown["content"]))
    return shown


def _load_fields(pdu: bytes, rules: RoomVersionRules) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = orjson.loads(pdu) if rules.strict_canonical_json else parse_exact_json(pdu)
    return fields


def _client_fields(fields: Mapping[str, Any], event_id: EventId, rules: RoomVersionRules) -> dict[str, Any]:
    content = fields["content"]
    shown = {
        "content": content,
        "event_id": event_id,
        "origin_server_ts": fields["origin_server_ts"],
        "sender": fields["sender"],
        "type": fields["type"],
    }
    if "state_key" in fields:
        shown["state_key"] = fields["state_key"]
    if shown["type"] == "m.room.redaction" and (redacts := _redacts(fields, content, rules)) is not None:
        shown["redacts"] = redacts
        if not rules.redacts_in_content:
            shown["content"] = {**content, "redacts": redacts}
    return shown


def _dump_exactly(value: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits, in a room of version 1 to 5
        return encode_canonical_json(value, strict=False)


def _redacts(fields: Mapping[str, Any], content: Mapping[str, Any], rules: RoomVersionRules) -> EventId | None:
    target = content.get("redacts") if rules.redacts_in_content else fields.get("redacts")
    try:
        return parse_event_id(target)
    except InvalidIdentifier:
        return None


def _check_format(fields: Mapping[str, Any], rules: RoomVersionRules) -> None:
    """Refuse a PDU with a missing field, a wrong type or a broken limit of its room version."""
    parse_user_id(fields.get("sender"))
    _check_text(fields.get("type"), "type")
    if "state_key" in fields:
        _check_text(fields["state_key"], "state_key")
    if not isinstance(fields.get("content"), Mapping):
        raise InvalidEvent("content must be an object")
    _check_integer(fields.get("origin_server_ts"), "origin_server_ts", -_MAX_INT64, _MAX_INT64)
    _check_integer(fields.get("depth"), "depth", 0, _MAX_INT53 if rules.strict_canonical_json else _MAX_INT64)
    _check_hashes_and_signatures(fields)
    _check_references(fields.get("prev_events"), "prev_events", MAX_PREV_EVENTS, rules)
    _check_references(fields.get("auth_events"), "auth_events", MAX_AUTH_EVENTS, rules)
    # The create event of version 12 has no room_id; that one with a room_id is refused is a
    # matter of authorisation (rule 1.2), not of format.
    if not rules.room_id_is_create_event_id or fields["type"] != "m.room.create":
        room_id = parse_room_id(fields.get("room_id"))
        if rules.room_id_is_create_event_id and ":" in room_id:
            raise InvalidEvent("room IDs of this room version have no domain")
    if rules.event_id_format is EventIdFormat.GIVEN:
        event_id = parse_event_id(fields.get("event_id"))
        parse_server_name(event_id.partition(":")[2])


def _check_text(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(f"{name} must be a string")
    if not fits_in_bytes(value):
        raise InvalidEvent(f"{name} must not exceed 255 bytes", too_large=True)
    if "\0" in value:
        raise InvalidEvent(f"{name} must not contain NUL")


def _check_integer(value: object, name: str, low: int, high: int) -> None:
    if type(value) is not int:
        raise InvalidEvent(f"{name} must be an integer")
    if not low <= value <= high:
        raise InvalidEvent(f"{name} is out of range")


def _check_hashes_and_signatures(fields: Mapping[str, Any]) -> None:
    hashes = fields.get("hashes")
    if not isinstance(hashes, Mapping) or not isinstance(hashes.get("sha256"), str):
        raise InvalidEvent("hashes must have a sha256")
    signatures = fields.get("signatures")
    if not isinstance(signatures, Mapping) or not all(isinstance(entry, Mapping) for entry in signatures.values()):
        raise InvalidEvent("signatures must be an object of objects")


def _check_references(value: object, name: str, limit: int, rules: RoomVersionRules) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidEvent(f"{name} must be an array")
    if len(value) > limit:
        raise InvalidEvent(f"{name} must not have more than {limit} entries")
    for entry in value:
        if rules.event_id_format is EventIdFormat.GIVEN:
            if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 2:
                raise InvalidEvent(f"{name} must hold pairs of event ID and hashes")
            if not isinstance(entry[1], Mapping):
                raise InvalidEvent(f"{name} must hold pairs of event ID and hashes")
            parse_event_id(entry[0])
        else:
            parse_event_id(entry)

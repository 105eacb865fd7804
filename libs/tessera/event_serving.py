"""From stored events to the JSON that clients get, as bytes.

The client form of a live event is made once; what depends on the reader (room_id, unsigned) is put
behind it byte by byte, so that serving it parses and serialises nothing again. A stored event is parsed, what
depends on the reader becomes a part of it, and it is written with the rest of the answer.

Spec: C-S API §Room event format, §Aggregations of child events; MSC4115 for `membership`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from matrixcore.events import client_fields
from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.room_versions import RoomVersionRules
from tessera.records import EventBody
from tessera.room_visibility import MembershipHistory
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.member_lists import MemberRow
from tessera.storage.room_reads.relations import Bundle

STRIPPED_KEYS = ("content", "sender", "state_key", "type")


@dataclass(frozen=True, slots=True)
class Reader:
    """Whom events are served to, and when.

    Attributes:
        now_ms: for `age`.
        history: the user's memberships in the room, for `membership`; None where that is not wanted.
    """

    user_id: UserId
    device_id: str | None
    now_ms: int
    history: MembershipHistory | None = None


def content_of(pdu: bytes) -> bytes:
    """The content of a PDU as JSON."""
    return orjson.dumps(orjson.loads(pdu)["content"])


def close_form(form: bytes, room_id: RoomId | None, unsigned: Sequence[bytes]) -> bytes:
    """A complete event: the open form, the room where it does not go without saying, and the members of unsigned."""
    middle = b"" if room_id is None else b',"room_id":' + orjson.dumps(room_id)
    return b"".join((form, middle, b',"unsigned":{', b",".join(unsigned), b"}}"))


def serve_event(
    event: EventRow,
    rules: RoomVersionRules,
    reader: Reader,
    *,
    room_id: RoomId | None,
    bundle: Bundle | None = None,
    bundles: Mapping[EventId, Bundle] | None = None,
) -> bytes:
    """One event for one reader.

    Args:
        room_id: None where the answer says it elsewhere (/sync).
        bundle: its aggregated relations; `bundles` those of the events in it (the latest of a thread).
    """
    return orjson.dumps(_shown(event, rules, reader, room_id, bundle, bundles or {}))


def serve_events(
    events: Sequence[EventRow],
    rules: RoomVersionRules,
    reader: Reader,
    *,
    room_id: RoomId | None,
    bundles: Mapping[EventId, Bundle] | None = None,
) -> list[dict[str, Any]]:
    """Several events, ready to stand in an answer."""
    found = bundles or {}
    return [_shown(event, rules, reader, room_id, found.get(event.event_id), found) for event in events]


def serve_live_event(
    body: EventBody, reader: Reader, *, room_id: RoomId | None = None, membership: str | None = None
) -> bytes:
    """An event out of a record, for one reader; its relations are too young to be bundled.

    Args:
        membership: the reader's at the event, where the caller knows it.
    """
    unsigned = [b'"age":%d' % (reader.now_ms - body.origin_server_ts)]
    if body.txn_id is not None and body.sender_device == reader.device_id and body.sender == reader.user_id:
        unsigned.append(b'"transaction_id":' + orjson.dumps(body.txn_id))
    if membership is not None:
        unsigned.append(b'"membership":' + orjson.dumps(membership))
    if body.replaces_state is not None:
        unsigned.append(b'"replaces_state":' + orjson.dumps(body.replaces_state))
        if body.prev_content is not None:
            unsigned.append(b'"prev_content":' + body.prev_content)
    return close_form(body.client, room_id, unsigned)


def strip_event(event: EventRow) -> dict[str, object]:
    """The stripped form of a state event. Spec: C-S API §Stripped state."""
    fields = orjson.loads(event.pdu)
    return {key: fields[key] for key in STRIPPED_KEYS}


def neighbours_of(event: EventRow | MemberRow, rules: RoomVersionRules, room_id: RoomId | None) -> dict[str, Any]:
    """What `unsigned` says to everybody: the state that the event replaced, and what redacted it."""
    unsigned: dict[str, Any] = {}
    if event.replaces_state is not None and event.state_key is not None:
        unsigned["replaces_state"] = event.replaces_state
        if event.previous_pdu is not None:
            unsigned["prev_content"] = orjson.Fragment(content_of(event.previous_pdu))
    if event.redacted_by is not None and event.redaction_pdu is not None:
        because = client_fields(event.redaction_pdu, event.redacted_by, rules)
        if room_id is not None:
            because["room_id"] = room_id
        unsigned["redacted_because"] = because | {"unsigned": {}}
    return unsigned


def _shown(
    event: EventRow,
    rules: RoomVersionRules,
    reader: Reader,
    room_id: RoomId | None,
    bundle: Bundle | None,
    bundles: Mapping[EventId, Bundle],
) -> dict[str, Any]:
    unsigned: dict[str, Any] = {"age": reader.now_ms - event.origin_server_ts}
    if event.txn_id is not None and event.sender_device == reader.device_id and event.sender == reader.user_id:
        unsigned["transaction_id"] = event.txn_id
    if reader.history is not None and event.anchor is not None and event.sub is not None:
        # As the event left it, its own effect included.
        unsigned["membership"] = reader.history.after((event.anchor, event.sub))
    if event.state_key is not None or event.redacted_by is not None:
        unsigned |= neighbours_of(event, rules, room_id)
    if bundle is not None:
        unsigned["m.relations"] = _bundled(event, bundle, rules, reader, room_id, bundles)
    shown = client_fields(event.pdu, event.event_id, rules)
    if room_id is not None:
        shown["room_id"] = room_id
    shown["unsigned"] = unsigned
    return shown


def _bundled(
    event: EventRow,
    bundle: Bundle,
    rules: RoomVersionRules,
    reader: Reader,
    room_id: RoomId | None,
    bundles: Mapping[EventId, Bundle],
) -> dict[str, Any]:
    relations: dict[str, Any] = {}
    if bundle.edit is not None:
        relations["m.replace"] = _shown(bundle.edit, rules, reader, room_id, None, {})
    if bundle.references:
        relations["m.reference"] = {"chunk": [{"event_id": event_id} for event_id in bundle.references]}
    if (latest := bundle.thread_latest) is not None:
        inner = bundles.get(latest.event_id)
        # No thread of its own: what is bundled in an event that is bundled itself ends here.
        inner = None if inner is None else Bundle(edit=inner.edit, references=inner.references)
        relations["m.thread"] = {
            "latest_event": _shown(latest, rules, reader, room_id, inner, {}),
            "count": bundle.thread_count,
            "current_user_participated": bundle.participated or event.sender == reader.user_id,
        }
    return relations

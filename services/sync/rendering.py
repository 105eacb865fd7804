"""Rows and records as the JSON of a sync answer: bytes that stand in it as `orjson.Fragment`s.

Spec: C-S API §Syncing, §Room event format.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import orjson

from matrixcore.filters import Filter
from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.push_rules import from_stored_form, merged_ruleset, ruleset_json
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.event_serving import Reader, close_form, serve_event
from tessera.records import Receipt
from tessera.storage.account_data import AccountData
from tessera.storage.presence import Presence
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.relations import Bundle
from tessera.storage.sync_reads import ReceiptRow
from tessera.storage.to_device import StoredMessage
from tessera.unread import Count, RoomUnread

Json = dict[str, Any]
NO_BUNDLES: Mapping[EventId, Bundle] = {}
CURRENTLY_ACTIVE_MS = 60_000

_REDACTION = "m.room.redaction"


@dataclass(frozen=True, slots=True)
class EventRenderer:
    """Turns event rows into what one request's client gets."""

    filter: Filter
    reader: Reader
    room_version: str

    def timeline(
        self, events: Sequence[EventRow], bundles: Mapping[EventId, Bundle] = NO_BUNDLES
    ) -> list[orjson.Fragment]:
        """Events with all that unsigned may hold."""
        rules = ROOM_VERSIONS[self.room_version]
        return [
            self._shaped(
                event,
                serve_event(
                    event, rules, self.reader, room_id=None, bundle=bundles.get(event.event_id), bundles=bundles
                ),
            )
            for event in events
        ]

    def state(self, events: Iterable[EventRow]) -> list[orjson.Fragment]:
        """State events: their age is all that is unsigned."""
        return [self._shaped(event, self._serve_state(event)) for event in events]

    def _serve_state(self, event: EventRow) -> bytes:
        if event.type == _REDACTION or event.redacted_by is not None:
            return serve_event(event, ROOM_VERSIONS[self.room_version], self.reader, room_id=None)
        fields = orjson.loads(event.pdu)
        form = orjson.dumps(
            {
                "content": fields["content"],
                "event_id": event.event_id,
                "origin_server_ts": event.origin_server_ts,
                "sender": event.sender,
                "state_key": event.state_key,
                "type": event.type,
            }
        )
        return close_form(form[:-1], None, [b'"age":%d' % (self.reader.now_ms - event.origin_server_ts)])

    def _shaped(self, event: EventRow, served: bytes) -> orjson.Fragment:
        if self.filter.federation_format:
            return orjson.Fragment(event.pdu)
        if self.filter.event_fields is not None:
            return orjson.Fragment(shape_event(self.filter, served))
        return orjson.Fragment(served)


def shape_event(request_filter: Filter, served: bytes) -> bytes:
    """An event with the fields that the filter asks for."""
    if request_filter.event_fields is None:
        return served
    return orjson.dumps(request_filter.event_fields.project(orjson.loads(served)))


def receipt_event(receipts: Iterable[ReceiptRow | Receipt], ignored: Set[UserId] = frozenset()) -> Json | None:
    """One m.receipt event of a room, without ignored users'; None without receipts. Spec: C-S API §Receipts."""
    content: Json = {}
    for receipt in receipts:
        if receipt.user_id in ignored:
            continue
        data: Json = {"ts": receipt.ts}
        if receipt.thread_id:
            data["thread_id"] = receipt.thread_id
        users = content.setdefault(receipt.event_id, {}).setdefault(receipt.receipt_type, {})
        users[receipt.user_id] = data
    return {"type": "m.receipt", "content": content} if content else None


def typing_event(user_ids: Iterable[UserId]) -> Json:
    """Who is typing in a room."""
    return {"type": "m.typing", "content": {"user_ids": sorted(user_ids)}}


def account_data_event(data: AccountData) -> Json:
    """A piece of account data; what was deleted is shown as empty."""
    return {"type": data.type, "content": orjson.Fragment(data.content if data.content is not None else b"{}")}


def push_rules_event(user_id: UserId, stored: bytes | None) -> Json:
    """The m.push_rules account data event. Spec: C-S API §Push Rules: Events."""
    rules = from_stored_form({} if stored is None else orjson.loads(stored))
    return {"type": "m.push_rules", "content": {"global": ruleset_json(merged_ruleset(user_id, rules))}}


def to_device_event(message: StoredMessage) -> Json:
    """A send-to-device message."""
    return {"sender": message.sender, "type": message.type, "content": orjson.Fragment(message.content)}


def presence_event(presence: Presence, now_ms: int) -> Json:
    """An m.presence event. Spec: C-S API §Presence."""
    active_ago = max(0, now_ms - presence.last_active_ts)
    content: Json = {"presence": presence.presence, "last_active_ago": active_ago}
    if presence.presence == "online":
        content["currently_active"] = active_ago < CURRENTLY_ACTIVE_MS
    if presence.status_msg is not None:
        content["status_msg"] = presence.status_msg
    return {"type": "m.presence", "sender": presence.user_id, "content": content}


def unread_fields(unread: RoomUnread, *, by_thread: bool) -> Json:
    """The unread counts of a joined room."""
    fields: Json = {"unread_notifications": _count(unread.main if by_thread else unread.total)}
    if by_thread:
        fields["unread_thread_notifications"] = {root: _count(count) for root, count in unread.threads.items()}
    return fields


def stripped_events(stripped_state: bytes | None) -> Json:
    """invite_state or knock_state."""
    return {"events": orjson.Fragment(stripped_state if stripped_state is not None else b"[]")}


def has_text(pdu: bytes | None, key: str) -> bool:
    """Whether a state event's content has a text under `key` that is not empty."""
    if pdu is None:
        return False
    value = orjson.loads(pdu)["content"].get(key)
    return isinstance(value, str) and value != ""


def display_name_of(pdu: bytes) -> str | None:
    """displayname of a member event."""
    name = orjson.loads(pdu)["content"].get("displayname")
    return name if isinstance(name, str) else None


def _count(count: Count) -> Json:
    return {"highlight_count": count.highlight, "notification_count": count.notify}


def without_empty(rooms: Mapping[str, Mapping[RoomId, Json]]) -> Json:
    """`rooms` of an answer, sections without any room left out."""
    return {section: entries for section, entries in rooms.items() if entries}

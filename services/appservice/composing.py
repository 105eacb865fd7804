"""Making transactions of what waits in the queues.

Spec: Application Service API §Pushing events, §Pushing ephemeral data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import structlog

from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.event_serving import Reader, serve_event
from tessera.storage import appservice_reads
from tessera.storage.appservice_queue import QueuedEphemeral, QueuedEvent
from tessera.storage.room_reads.events import EventRow
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

MAX_BYTES = 4 << 20  # of the events of one transaction, unless one alone is larger

EventName = tuple[RoomId, EventId]
StoredEvents = Mapping[EventName, tuple[str, EventRow]]


class Composed(NamedTuple):
    """The body of a transaction, and the rows of the queues that it carries."""

    body: bytes
    events: tuple[int, ...]
    ephemeral: tuple[int, ...]
    event_count: int  # some rows have nothing to tell any more


async def load_events(shards: RoomShards, queued: Sequence[QueuedEvent]) -> StoredEvents:
    """The events as they are now, one query a shard: what was redacted meanwhile is told redacted.

    Raises:
        DatabaseUnavailable
    """
    groups: dict[str, list[EventName]] = {}
    for one in queued:
        groups.setdefault(shards.shard_of(shards.partition_of(one.room_id)), []).append((one.room_id, one.event_id))
    found: dict[EventName, tuple[str, EventRow]] = {}
    for shard, names in groups.items():
        async with shards.databases[shard].reading() as tx:
            found |= await appservice_reads.list_events(tx, names)
    return found


def compose(
    queued: Sequence[QueuedEvent],
    stored: StoredEvents,
    passing: Sequence[QueuedEphemeral],
    now_ms: int,
    *,
    older_ephemeral: bool = False,
) -> Composed:
    """A transaction of the first of the events, as many as fit, and of what passes.

    Args:
        older_ephemeral: under the name of MSC2409 too.
    """
    reader = Reader(UserId(""), None, now_ms)
    seqs: list[int] = []
    events: list[bytes] = []
    size = 0
    for one in queued:
        event = _form_of(one, stored, reader)
        size += 0 if event is None else len(event)
        if seqs and size > MAX_BYTES:
            break
        seqs.append(one.seq)
        if event is not None:
            events.append(event)
    body = b'{"events":[' + b",".join(events) + b"]"
    if passing:
        ephemeral = orjson.dumps(ephemeral_events(passing))
        body += b',"ephemeral":' + ephemeral
        if older_ephemeral:
            body += b',"de.sorunome.msc2409.ephemeral":' + ephemeral
    return Composed(body + b"}", tuple(seqs), tuple(one.seq for one in passing), len(events))


def _form_of(one: QueuedEvent, stored: StoredEvents, reader: Reader) -> bytes | None:
    """An event as clients get it, or None where nothing is left of it: its room was purged meanwhile."""
    aside: dict[str, Any] = {} if one.aside is None else orjson.loads(one.aside)
    version, event = stored.get((one.room_id, one.event_id), ("", None))
    rules = ROOM_VERSIONS.get(version)
    member = aside.get("member")
    if event is None or rules is None or (member is not None and event.membership != member["content"]["membership"]):
        if member is None:
            log.info("event is gone, not told", room_id=one.room_id, event_id=one.event_id)
            return None
        form = {**member, "room_id": one.room_id, "unsigned": {}}
    elif "stripped" not in aside:
        return serve_event(event, rules, reader, room_id=one.room_id)
    else:
        form = orjson.loads(serve_event(event, rules, reader, room_id=one.room_id))
    if "stripped" in aside:
        name = "knock_room_state" if form["content"]["membership"] == "knock" else "invite_room_state"
        form["unsigned"][name] = aside["stripped"]
    return orjson.dumps(form)


def ephemeral_events(passing: Sequence[QueuedEphemeral]) -> list[dict[str, Any]]:
    """What passes in the form of /sync with the room of each; the receipts of a room are one event."""
    events: list[dict[str, Any]] = []
    receipts: dict[RoomId, list[dict[str, Any]]] = {}
    for one in passing:
        value = orjson.loads(one.body)
        if isinstance(value, dict):
            events.append(value)
        else:
            _add_receipt(events, receipts.setdefault(one.room_id, []), one.room_id, value)
    return events


def _add_receipt(
    events: list[dict[str, Any]], own: list[dict[str, Any]], room_id: RoomId, receipt: Sequence[Any]
) -> None:
    """Put a receipt into the first of the room's events that has none of the same event, type and user."""
    event_id, receipt_type, user_id, data = receipt
    for content in own:
        users = content.setdefault(event_id, {}).setdefault(receipt_type, {})
        if user_id not in users:
            users[user_id] = data
            return
    content = {event_id: {receipt_type: {user_id: data}}}
    own.append(content)
    events.append({"type": "m.receipt", "room_id": room_id, "content": content})

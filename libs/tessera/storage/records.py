"""The records of room.log, read back from PostgreSQL by whoever missed them."""

from collections.abc import Sequence
from typing import Any

import orjson

from matrixcore.events import client_form, load_event
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.records import Counters, EventBody, LogRecord, RecordBody, RecordKind, decode_body
from tessera.storage.database import Transaction

_COLUMNS = """
    r.partition, r.position, r.incarnation, r.room_id, r.room_previous, r.kind, r.body,
    e.event_id, e.type, e.state_key, e.sender, e.origin_server_ts, e.pdu, e.membership, e.sender_device, e.txn_id,
    e.replaces_state, previous.pdu AS previous_pdu, e.history_visibility, e.forked, e.servers, e.redacts,
    e.relates_to, e.rel_type, e.thread_root, e.notify_count, e.highlight_all_count, e.thread_notify_count,
    e.thread_highlight_all_count, e.mentions, e.joined_count, e.invited_count, e.stripped_state,
    e.redacted_by IS NOT NULL AS redacted, e.forwarded, rooms.room_version
"""

_JOINS = """
    LEFT JOIN rooms.events e ON e.room_id = r.room_id AND e.event_id = r.event_id
    LEFT JOIN rooms.events previous ON previous.room_id = r.room_id AND previous.event_id = e.replaces_state
    LEFT JOIN rooms.rooms ON rooms.room_id = r.room_id
"""

# Constant text is put together here; values are always parameters.
_LIST = f"""
SELECT {_COLUMNS} FROM rooms.records r {_JOINS}
WHERE r.partition = $1 AND r.position > $2 AND r.position <= $3
ORDER BY r.position LIMIT $4
"""  # noqa: S608  constant text

_LIST_OF_ROOMS = f"""
SELECT {_COLUMNS} FROM rooms.records r {_JOINS}
WHERE r.room_id = ANY($1::text[]) AND r.position > $2 AND r.position <= $3
ORDER BY r.position LIMIT $4
"""  # noqa: S608  constant text


async def list_records(tx: Transaction, partition: int, after: int, up_to: int, limit: int) -> list[LogRecord]:
    """The records of a partition with after < position <= up_to, in order, at most `limit`.

    The same, byte for byte, as were published, unless their events have been redacted since.
    """
    return [_record(row) for row in await tx.fetch(_LIST, partition, after, up_to, limit)]


async def list_records_of_rooms(
    tx: Transaction, room_ids: Sequence[str], after: int, up_to: int, limit: int
) -> list[LogRecord]:
    """`list_records` of some rooms of one partition only."""
    return [_record(row) for row in await tx.fetch(_LIST_OF_ROOMS, list(room_ids), after, up_to, limit)]


def _record(row: Any) -> LogRecord:
    kind = RecordKind(row["kind"])
    body: RecordBody
    body = _event_body(row) if kind is RecordKind.EVENT else decode_body(kind, row["body"])
    return LogRecord(
        row["incarnation"], row["partition"], row["position"], row["room_id"], row["room_previous"], kind, body
    )


def _event_body(row: Any) -> EventBody:
    event = load_event(row["pdu"], row["event_id"], ROOM_VERSIONS[row["room_version"]], room_id=row["room_id"])
    previous_pdu = row["previous_pdu"]
    return EventBody(
        event_id=event.event_id,
        type=row["type"],
        state_key=row["state_key"],
        sender=row["sender"],
        origin_server_ts=row["origin_server_ts"],
        client=client_form(event),
        membership=row["membership"],
        sender_device=row["sender_device"],
        txn_id=row["txn_id"],
        replaces_state=row["replaces_state"],
        prev_content=None if previous_pdu is None else orjson.dumps(orjson.loads(previous_pdu)["content"]),
        history_visibility=row["history_visibility"],
        forked=row["forked"],
        servers=tuple(row["servers"]),
        redacts=row["redacts"],
        relates_to=row["relates_to"],
        rel_type=row["rel_type"],
        thread_root=row["thread_root"],
        counters=Counters(
            row["notify_count"],
            row["highlight_all_count"],
            row["thread_notify_count"],
            row["thread_highlight_all_count"],
        ),
        mentions=tuple(row["mentions"]),
        joined_count=row["joined_count"],
        invited_count=row["invited_count"],
        stripped_state=row["stripped_state"],
        redacted=row["redacted"],
        forwarded=row["forwarded"],
    )

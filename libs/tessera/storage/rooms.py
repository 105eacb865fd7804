"""What the room writer loads before it builds a batch: one statement for all rooms and keys that are missing."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import asyncpg

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import OrderKey
from tessera.storage.database import Transaction

LOAD_TIMEOUT_SECONDS = 5.0


class LoadRefused(Exception):
    """PostgreSQL does not take what is asked for, such as text with NUL."""


class LoadedRoom(NamedTuple):
    """The row of a room with its servers.

    `extremity_pdus` holds the events of the forward extremities in room versions 1 and 2, whose
    references carry hashes.
    """

    room_id: RoomId
    partition: int
    room_version: str
    create_event_id: EventId
    forward_extremities: tuple[EventId, ...]
    depth: int
    last_position: int
    joined_count: int
    invited_count: int
    notify_count: int
    highlight_all_count: int
    forked: bool
    servers: dict[str, int]
    extremity_pdus: dict[EventId, bytes]


class LoadedEvent(NamedTuple):
    """What a relation, a redaction or a receipt needs to know of the event that it names."""

    event_id: EventId
    sender: UserId
    order: OrderKey | None  # None for outliers, rejected and soft-failed events
    relates_to: EventId | None
    rel_type: str | None
    thread_root: EventId | None
    state_key: str | None
    type: str
    is_redacted: bool
    is_mentioning: bool
    pdu: bytes | None  # only where it was asked for


class ThreadSums(NamedTuple):
    """The cumulative counters of a thread."""

    reply_count: int
    latest_event_id: EventId
    latest_anchor: int
    notify_count: int
    highlight_all_count: int


class StoredReceipt(NamedTuple):
    """A receipt that the room has, with the place of its event."""

    event_id: EventId
    order: OrderKey | None


ReceiptKey = tuple[RoomId, str, str, str]  # room, receipt type, user, thread ("" unthreaded)


@dataclass(slots=True)
class Wanted:
    """What is to be loaded; every part is a set in the order of its first mention."""

    rooms: dict[RoomId, None] = field(default_factory=dict)
    state: dict[tuple[RoomId, str, str], None] = field(default_factory=dict)
    events: dict[tuple[RoomId, EventId], bool] = field(default_factory=dict)  # whether the PDU is wanted too
    threads: dict[tuple[RoomId, EventId], None] = field(default_factory=dict)
    receipts: dict[ReceiptKey, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rooms or self.state or self.events or self.threads or self.receipts)


@dataclass(slots=True)
class Loaded:
    """What was found. Whatever was wanted and is not here does not exist."""

    rooms: dict[RoomId, LoadedRoom] = field(default_factory=dict)
    state: dict[tuple[RoomId, str, str], tuple[EventId, bytes]] = field(default_factory=dict)
    events: dict[tuple[RoomId, EventId], LoadedEvent] = field(default_factory=dict)
    threads: dict[tuple[RoomId, EventId], ThreadSums] = field(default_factory=dict)
    receipts: dict[ReceiptKey, StoredReceipt] = field(default_factory=dict)


# Every part answers: kind, room_id, t1..t8 (text), n1..n6 (bigint), data (bytea), list (text[]).
_PARTS: Final[dict[str, str]] = {
    "rooms": """
SELECT 1 AS kind, r.room_id, r.room_version AS t1, r.create_event_id AS t2, NULL::text AS t3, NULL::text AS t4,
       NULL::text AS t5, NULL::text AS t6, NULL::text AS t7, NULL::text AS t8, r.depth AS n1, r.last_position AS n2,
       r.joined_count::bigint AS n3, r.invited_count::bigint AS n4, r.notify_count AS n5, r.highlight_all_count AS n6,
       r.partition::bigint AS n7, r.forked AS flag, NULL::bytea AS data, r.forward_extremities AS list
FROM rooms.rooms r WHERE r.room_id = ANY($1::text[])
UNION ALL
SELECT 2, s.room_id, s.server_name, NULL, NULL, NULL, NULL, NULL, NULL, NULL, s.joined_count, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL
FROM rooms.room_servers s WHERE s.room_id = ANY($1::text[])
UNION ALL
SELECT 3, e.room_id, e.event_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, e.pdu, NULL
FROM rooms.rooms r JOIN rooms.events e ON e.room_id = r.room_id AND e.event_id = ANY(r.forward_extremities)
WHERE r.room_id = ANY($1::text[]) AND r.room_version IN ('1', '2')
""",
    "state": """
SELECT 4 AS kind, s.room_id, s.type AS t1, s.state_key AS t2, s.event_id AS t3, NULL::text AS t4, NULL::text AS t5,
       NULL::text AS t6, NULL::text AS t7, NULL::text AS t8, NULL::bigint AS n1, NULL::bigint AS n2,
       NULL::bigint AS n3, NULL::bigint AS n4, NULL::bigint AS n5, NULL::bigint AS n6, NULL::bigint AS n7,
       NULL::boolean AS flag, e.pdu AS data, NULL::text[] AS list
FROM unnest($1::text[], $2::text[], $3::text[]) AS w (room_id, type, state_key)
JOIN rooms.current_state s ON s.room_id = w.room_id AND s.type = w.type AND s.state_key = w.state_key
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
""",
    # The event that a wanted one relates to comes along: a thread is found through at most three relations.
    "events": """
SELECT 5 AS kind, e.room_id, e.event_id AS t1, e.sender AS t2, e.relates_to AS t3, e.rel_type AS t4,
       e.thread_root AS t5, e.state_key AS t6, e.type AS t7, NULL::text AS t8, e.anchor AS n1, e.sub::bigint AS n2,
       (e.redacted_by IS NOT NULL)::int::bigint AS n3, (cardinality(e.mentions) > 0)::int::bigint AS n4,
       NULL::bigint AS n5, NULL::bigint AS n6, NULL::bigint AS n7, NULL::boolean AS flag,
       CASE WHEN w.with_pdu THEN e.pdu END AS data, NULL::text[] AS list
FROM unnest($1::text[], $2::text[], $3::boolean[]) AS w (room_id, event_id, with_pdu)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id AND NOT e.outlier AND e.rejected IS NULL
UNION ALL
SELECT 5, p.room_id, p.event_id, p.sender, p.relates_to, p.rel_type, p.thread_root, p.state_key, p.type, NULL,
       p.anchor, p.sub, (p.redacted_by IS NOT NULL)::int, (cardinality(p.mentions) > 0)::int, NULL, NULL, NULL, NULL,
       NULL, NULL
FROM unnest($1::text[], $2::text[], $3::boolean[]) AS w (room_id, event_id, with_pdu)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id AND e.rel_type <> 'm.thread'
JOIN rooms.events p ON p.room_id = e.room_id AND p.event_id = e.relates_to AND NOT p.outlier AND p.rejected IS NULL
UNION ALL
SELECT 6, t.room_id, t.thread_root, t.latest_event_id, NULL, NULL, NULL, NULL, NULL, NULL, t.reply_count,
       t.latest_anchor, t.notify_count, t.highlight_all_count, NULL, NULL, NULL, NULL, NULL, NULL
FROM unnest($1::text[], $2::text[], $3::boolean[]) AS w (room_id, event_id, with_pdu)
JOIN rooms.events e ON e.room_id = w.room_id AND e.event_id = w.event_id
JOIN rooms.threads t ON t.room_id = e.room_id AND t.thread_root = e.thread_root
""",
    "threads": """
SELECT 6 AS kind, t.room_id, t.thread_root AS t1, t.latest_event_id AS t2, NULL::text AS t3, NULL::text AS t4,
       NULL::text AS t5, NULL::text AS t6, NULL::text AS t7, NULL::text AS t8, t.reply_count AS n1,
       t.latest_anchor AS n2, t.notify_count AS n3, t.highlight_all_count AS n4, NULL::bigint AS n5,
       NULL::bigint AS n6, NULL::bigint AS n7, NULL::boolean AS flag, NULL::bytea AS data, NULL::text[] AS list
FROM unnest($1::text[], $2::text[]) AS w (room_id, thread_root)
JOIN rooms.threads t ON t.room_id = w.room_id AND t.thread_root = w.thread_root
""",
    "receipts": """
SELECT 7 AS kind, c.room_id, c.receipt_type AS t1, c.user_id AS t2, c.thread_id AS t3, c.event_id AS t4,
       NULL::text AS t5, NULL::text AS t6, NULL::text AS t7, NULL::text AS t8, e.anchor AS n1, e.sub::bigint AS n2,
       NULL::bigint AS n3, NULL::bigint AS n4, NULL::bigint AS n5, NULL::bigint AS n6, NULL::bigint AS n7,
       NULL::boolean AS flag, NULL::bytea AS data, NULL::text[] AS list
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w (room_id, receipt_type, user_id, thread_id)
JOIN rooms.receipts c ON c.room_id = w.room_id AND c.receipt_type = w.receipt_type AND c.user_id = w.user_id
     AND c.thread_id = w.thread_id
LEFT JOIN rooms.events e ON e.room_id = c.room_id AND e.event_id = c.event_id
""",
}
_PARAMETERS: Final = {"rooms": 1, "state": 3, "events": 3, "threads": 2, "receipts": 4}


async def load(tx: Transaction, wanted: Wanted) -> Loaded:
    """Load everything that is wanted, in one statement.

    Raises:
        LoadRefused
    """
    parts: list[str] = []
    parameters: list[Any] = []
    if wanted.rooms:
        parts.append("rooms")
        parameters.append(list(wanted.rooms))
    if wanted.state:
        parts.append("state")
        parameters += _columns(wanted.state, 3)
    if wanted.events:
        parts.append("events")
        parameters += _columns(wanted.events, 2)
        parameters.append(list(wanted.events.values()))
    if wanted.threads:
        parts.append("threads")
        parameters += _columns(wanted.threads, 2)
    if wanted.receipts:
        parts.append("receipts")
        parameters += _columns(wanted.receipts, 4)
    loaded = Loaded()
    if parts:
        try:
            rows = await tx.fetch(_statement(tuple(parts)), *parameters, timeout=LOAD_TIMEOUT_SECONDS)
        except (asyncpg.DataError, UnicodeEncodeError) as error:
            raise LoadRefused(str(error)) from error
        _take_rows(rows, loaded)
    return loaded


def _columns(keys: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    columns = [list(column) for column in zip(*keys, strict=True)]
    assert len(columns) == width
    return columns


@lru_cache(maxsize=64)
def _statement(parts: tuple[str, ...]) -> str:
    number = 0
    texts: list[str] = []
    for name in parts:
        text = _PARTS[name]
        count = _PARAMETERS[name]
        for index in range(count, 0, -1):
            text = text.replace(f"${index}::", f"${number + index}::")
        number += count
        texts.append(text)
    return "UNION ALL".join(texts)


def _take_rows(rows: list[Any], loaded: Loaded) -> None:
    servers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    pdus: defaultdict[str, dict[EventId, bytes]] = defaultdict(dict)
    room_rows: list[Any] = []
    for row in rows:
        room_id = row["room_id"]
        match row["kind"]:
            case 1:
                room_rows.append(row)
            case 2:
                servers[room_id][row["t1"]] = row["n1"]
            case 3:
                pdus[room_id][row["t1"]] = row["data"]
            case 4:
                loaded.state[room_id, row["t1"], row["t2"]] = (row["t3"], row["data"])
            case 5:
                _take_event(row, loaded)
            case 6:
                loaded.threads[room_id, row["t1"]] = ThreadSums(row["n1"], row["t2"], row["n2"], row["n3"], row["n4"])
            case 7:
                order = None if row["n1"] is None else OrderKey(row["n1"], row["n2"])
                loaded.receipts[room_id, row["t1"], row["t2"], row["t3"]] = StoredReceipt(row["t4"], order)
    for row in room_rows:
        room_id = row["room_id"]
        loaded.rooms[room_id] = LoadedRoom(
            room_id,
            row["n7"],
            row["t1"],
            row["t2"],
            tuple(row["list"]),
            row["n1"],
            row["n2"],
            row["n3"],
            row["n4"],
            row["n5"],
            row["n6"],
            row["flag"],
            servers[room_id],
            pdus[room_id],
        )


def _take_event(row: Any, loaded: Loaded) -> None:
    key = (row["room_id"], row["t1"])
    if key in loaded.events and row["data"] is None:
        return
    loaded.events[key] = LoadedEvent(
        row["t1"],
        row["t2"],
        None if row["n1"] is None else OrderKey(row["n1"], row["n2"]),
        row["t3"],
        row["t4"],
        row["t5"],
        row["t6"],
        row["t7"],
        bool(row["n3"]),
        bool(row["n4"]),
        row["data"],
    )

"""A writer of rooms for the tests of /sync: rows as the room writer commits them, published when a test wants it.

Linear rooms, one process, no authorisation. What it buys over the real writer is control: a batch can be lost,
repeated or kept back, and a membership can be projected late.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from matrixcore.event_building import build_event
from matrixcore.events import Event, client_form, load_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.push_evaluation import default_outcome
from matrixcore.redaction import redact
from matrixcore.relations import parse_relation, thread_root
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from tessera.clock import Clock
from tessera.records import (
    Counters,
    EventBody,
    LogRecord,
    OrderKey,
    PartitionBatch,
    Receipt,
    ReceiptsBody,
    RecordKind,
    RedactionBody,
    encode_body,
)
from tessera.storage.shards import RoomShards
from tessera.storage.user_rooms import MembershipChange

SERVER = ServerName("here.org")
KEY = SigningKey("1", b"\x01" * 32)
RULES = ROOM_VERSIONS["11"]


@dataclass(slots=True)
class WrittenRoom:
    """What the writer keeps of a room."""

    room_id: RoomId
    partition: int
    depth: int = 0
    last: EventId | None = None
    last_position: int = 0
    notify: int = 0
    highlight: int = 0
    threads: dict[EventId, tuple[int, int, int]] = field(default_factory=dict)  # replies, notify, highlight
    members: dict[str, str] = field(default_factory=dict)
    state: dict[tuple[str, str], tuple[EventId, bytes]] = field(default_factory=dict)
    visibility: str = "shared"

    def count(self, membership: str) -> int:
        return sum(1 for one in self.members.values() if one == membership)


class RowWriter:
    """Commits events one at a time."""

    def __init__(self, shards: RoomShards, clock: Clock) -> None:
        self._shards = shards
        self._clock = clock
        self._heads: dict[int, int] = {}
        self.rooms: dict[RoomId, WrittenRoom] = {}

    async def create(
        self, creator: UserId, *, name: str | None = None, visibility: str = "shared"
    ) -> list[PartitionBatch]:
        """A new room with its creator in it; the last of `rooms`."""
        room_id = RoomId(f"!room{len(self.rooms)}:{SERVER}")
        partition = self._shards.partition_of(room_id)
        database = self._shards.of_room(room_id)
        await database.execute("INSERT INTO rooms.partitions (partition) VALUES ($1) ON CONFLICT DO NOTHING", partition)
        await database.execute(
            "INSERT INTO rooms.rooms (room_id, partition, room_version, creator, create_event_id, created_ms,"
            " forward_extremities, depth, last_position) VALUES ($1, $2, '11', $3, '', 0, '{}', 0, 0)",
            room_id,
            partition,
            creator,
        )
        self.rooms[room_id] = WrittenRoom(room_id, partition)
        batches = [
            await self.send(room_id, creator, "m.room.create", {"room_version": "11"}, state_key=""),
            await self.member(room_id, creator, "join"),
        ]
        if visibility != "shared":
            content = {"history_visibility": visibility}
            batches.append(await self.send(room_id, creator, "m.room.history_visibility", content, state_key=""))
        if name is not None:
            batches.append(await self.send(room_id, creator, "m.room.name", {"name": name}, state_key=""))
        return batches

    async def member(
        self, room_id: RoomId, user_id: UserId, membership: str, *, sender: UserId | None = None, **content: Any
    ) -> PartitionBatch:
        """A member event; by the user unless a sender is given."""
        return await self.send(
            room_id, sender or user_id, "m.room.member", {"membership": membership, **content}, state_key=user_id
        )

    async def message(self, room_id: RoomId, sender: UserId, body: str, **content: Any) -> PartitionBatch:
        """A text message."""
        return await self.send(room_id, sender, "m.room.message", {"msgtype": "m.text", "body": body, **content})

    async def send(
        self,
        room_id: RoomId,
        sender: UserId,
        event_type: str,
        content: dict[str, Any],
        *,
        state_key: str | None = None,
        device: str | None = None,
        txn_id: str | None = None,
    ) -> PartitionBatch:
        """Commit an event; the batch is not published yet."""
        room = self.rooms[room_id]
        room.depth += 1
        event = build_event(
            rules=RULES,
            room_id=room_id,
            sender=sender,
            event_type=event_type,
            state_key=state_key,
            content=content,
            origin_server_ts=self._clock.now_ms(),
            depth=room.depth,
            prev_events=() if room.last is None else (room.last,),
            auth_events=(),
            server_name=SERVER,
            signing_key=KEY,
        )
        position = self._next(room.partition)
        record = self._record(room, event, position, device, txn_id)
        await self._insert(room, event, record)
        return self._finish(room, record)

    async def receipt(self, room_id: RoomId, user_id: UserId, event_id: EventId) -> PartitionBatch:
        """A public receipt as a record."""
        room = self.rooms[room_id]
        body = ReceiptsBody((Receipt(user_id, "m.read", "", event_id, self._clock.now_ms()),))
        position = self._next(room.partition)
        database = self._shards.of_room(room_id)
        await database.execute(
            "INSERT INTO rooms.receipts VALUES ($1, 'm.read', $2, '', $3, $4, $5)"
            " ON CONFLICT (room_id, receipt_type, user_id, thread_id) DO UPDATE SET event_id = excluded.event_id,"
            " ts = excluded.ts, position = excluded.position",
            room_id,
            user_id,
            event_id,
            self._clock.now_ms(),
            position,
        )
        record = LogRecord(1, room.partition, position, room_id, room.last_position, RecordKind.RECEIPTS, body)
        await self._insert_record(room, record, None, encode_body(body))
        return self._finish(room, record)

    async def redact(self, room_id: RoomId, sender: UserId, target: LogRecord) -> PartitionBatch:
        """A redaction and its effect, in one batch of two records."""
        room = self.rooms[room_id]
        first = await self.send(room_id, sender, "m.room.redaction", {"redacts": target.event.event_id})
        redaction_id = first.records[0].event.event_id
        database = self._shards.of_room(room_id)
        pdu = await database.fetchval(
            "SELECT pdu FROM rooms.events WHERE room_id = $1 AND event_id = $2", room_id, target.event.event_id
        )
        redacted = load_event(orjson.dumps(redact(orjson.loads(pdu), RULES)), target.event.event_id, RULES)
        await database.execute(
            "UPDATE rooms.events SET pdu = $3, redacted_by = $4, relates_to = NULL, rel_type = NULL"
            " WHERE room_id = $1 AND event_id = $2",
            room_id,
            redacted.event_id,
            redacted.pdu,
            redaction_id,
        )
        await database.execute(
            "DELETE FROM rooms.mentions WHERE room_id = $1 AND anchor = $2", room_id, target.position
        )
        body = RedactionBody(redacted.event_id, redaction_id, client_form(redacted), OrderKey(target.position))
        position = self._next(room.partition)
        record = LogRecord(1, room.partition, position, room_id, room.last_position, RecordKind.REDACTION_APPLIED, body)
        await self._insert_record(room, record, None, encode_body(body))
        self._finish(room, record)
        return PartitionBatch(1, room.partition, position - 1, position, (*first.records, record))

    def _record(
        self, room: WrittenRoom, event: Event, position: int, device: str | None, txn_id: str | None
    ) -> LogRecord:
        membership = event.membership if event.type == "m.room.member" else None
        old = room.state.get(event.state_tuple) if event.is_state else None
        root = thread_root(parse_relation(event.content))
        outcome = default_outcome(
            event.type, event.state_key, event.sender, event.content, room.count("join"), lambda: True
        )
        thread = (0, 0, 0)
        if root is None:
            room.notify += outcome.notify
            room.highlight += outcome.highlight_all
        else:
            replies, notify, highlight = room.threads.get(root, (0, 0, 0))
            thread = (replies + 1, notify + outcome.notify, highlight + outcome.highlight_all)
            room.threads[root] = thread
        if membership is not None:
            room.members[str(event.state_key)] = membership
        stripped = orjson.dumps([_strip(event)]) if membership in ("invite", "knock") else None
        body = EventBody(
            event_id=event.event_id,
            type=event.type,
            state_key=event.state_key,
            sender=event.sender,
            origin_server_ts=event.origin_server_ts,
            client=client_form(event),
            membership=membership,
            sender_device=device,
            txn_id=txn_id,
            replaces_state=None if old is None else old[0],
            prev_content=None if old is None else orjson.dumps(orjson.loads(old[1])["content"]),
            history_visibility=room.visibility,
            thread_root=root,
            counters=Counters(room.notify, room.highlight, thread[1], thread[2]),
            mentions=tuple(outcome.mentioned_user_ids),
            joined_count=room.count("join"),
            invited_count=room.count("invite"),
            stripped_state=stripped,
        )
        if event.is_state:
            room.state[event.state_tuple] = (event.event_id, event.pdu)
        if event.type == "m.room.history_visibility":
            room.visibility = str(event.content["history_visibility"])
        return LogRecord(1, room.partition, position, room.room_id, room.last_position, RecordKind.EVENT, body)

    async def _insert(self, room: WrittenRoom, event: Event, record: LogRecord) -> None:
        body, database = record.event, self._shards.of_room(room.room_id)
        relation = parse_relation(event.content)
        await database.execute(
            "INSERT INTO rooms.events (room_id, event_id, anchor, sub, type, state_key, sender, membership, depth,"
            " origin_server_ts, received_ms, pdu, sender_device, txn_id, replaces_state, history_visibility,"
            " relates_to, rel_type, thread_root, notify_count, highlight_all_count, thread_notify_count,"
            " thread_highlight_all_count, mentions, joined_count, invited_count)"
            " VALUES ($1, $2, $3, 0, $4, $5, $6, $7, $8, $9, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,"
            " $20, $21, $22, $23, $24)",
            room.room_id,
            event.event_id,
            record.position,
            event.type,
            event.state_key,
            event.sender,
            body.membership,
            event.depth,
            event.origin_server_ts,
            event.pdu,
            body.sender_device,
            body.txn_id,
            body.replaces_state,
            body.history_visibility,
            None if relation is None else relation.event_id,
            None if relation is None else relation.rel_type,
            body.thread_root,
            *body.counters,
            list(body.mentions),
            body.joined_count,
            body.invited_count,
        )
        if event.is_state:
            values = (room.room_id, *event.state_tuple, event.event_id, record.position, body.membership)
            await database.execute(
                "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (room_id, type, state_key) DO UPDATE SET"
                " event_id = EXCLUDED.event_id, anchor = EXCLUDED.anchor, membership = EXCLUDED.membership",
                *values,
            )
            await database.execute(
                "INSERT INTO rooms.state_history (room_id, type, state_key, event_id, anchor, membership)"
                " VALUES ($1, $2, $3, $4, $5, $6)",
                *values,
            )
        for user_id in body.mentions:
            await database.execute(
                "INSERT INTO rooms.mentions VALUES ($1, $2, $3, $4, $5)",
                room.room_id,
                user_id,
                record.position,
                body.thread_root or "",
                event.event_id,
            )
        if body.thread_root is not None:
            replies, notify, highlight = room.threads[body.thread_root]
            await database.execute(
                "INSERT INTO rooms.threads (room_id, thread_root, reply_count, latest_event_id, latest_anchor,"
                " notify_count, highlight_all_count) VALUES ($1, $2, $3, $4, $5, $6, $7)"
                " ON CONFLICT (room_id, thread_root) DO UPDATE SET reply_count = excluded.reply_count,"
                " latest_event_id = excluded.latest_event_id, latest_anchor = excluded.latest_anchor,"
                " notify_count = excluded.notify_count, highlight_all_count = excluded.highlight_all_count",
                room.room_id,
                body.thread_root,
                replies,
                event.event_id,
                record.position,
                notify,
                highlight,
            )
        room.last = event.event_id
        await self._insert_record(room, record, event.event_id, None)

    async def _insert_record(
        self, room: WrittenRoom, record: LogRecord, event_id: EventId | None, body: bytes | None
    ) -> None:
        database = self._shards.of_room(room.room_id)
        async with database.transaction() as tx:
            await tx.execute(
                "INSERT INTO rooms.records VALUES ($1, $2, 1, $3, $4, $5, $6, $7)",
                record.partition,
                record.position,
                room.room_id,
                record.room_previous,
                int(record.kind),
                event_id,
                body,
            )
            await tx.execute(
                "UPDATE rooms.rooms SET last_position = $2, joined_count = $3, invited_count = $4, notify_count = $5,"
                " highlight_all_count = $6 WHERE room_id = $1",
                room.room_id,
                record.position,
                room.count("join"),
                room.count("invite"),
                room.notify,
                room.highlight,
            )
            await tx.execute(
                "UPDATE rooms.partitions SET head = $2 WHERE partition = $1", record.partition, record.position
            )

    def _next(self, partition: int) -> int:
        self._heads[partition] = self._heads.get(partition, 0) + 1
        return self._heads[partition]

    def _finish(self, room: WrittenRoom, record: LogRecord) -> PartitionBatch:
        room.last_position = record.position
        return PartitionBatch(1, room.partition, record.position, record.position, (record,))


def changes_of(batches: Sequence[PartitionBatch]) -> list[MembershipChange]:
    """The memberships that batches tell of."""
    return [
        MembershipChange(
            UserId(record.event.state_key or ""),
            record.room_id,
            record.event.membership,
            record.event.event_id,
            record.event.sender,
            record.partition,
            1,
            record.position,
            record.event.stripped_state,
        )
        for batch in batches
        for record in batch.records
        if record.kind is RecordKind.EVENT and record.event.membership is not None
    ]


def _strip(event: Event) -> dict[str, Any]:
    return {
        "type": event.type,
        "sender": event.sender,
        "state_key": event.state_key,
        "content": dict(event.content),
    }

"""Rooms put straight into the tables, so that reads are tested without a writer."""

from dataclasses import dataclass, field
from typing import Any

from matrixcore.event_building import build_event
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.relations import parse_relation, thread_root
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from tessera.commands import partition_of
from tessera.records import OrderKey
from tessera.storage.database import Database

SERVER = ServerName("here.org")
ALICE, BOB, CAROL = (UserId(f"@{name}:{SERVER}") for name in ("alice", "bob", "carol"))
KEY = SigningKey("1", b"\x01" * 32)
ROOM = RoomId(f"!room:{SERVER}")
PARTITIONS = 64
BEGINNING_MS = 1_700_000_000_000


@dataclass(slots=True)
class SeededRoom:
    """A linear room of version 11, one event a position, second by second."""

    database: Database
    room_id: RoomId = ROOM
    position: int = 0
    visibility: str = "shared"
    state: dict[tuple[str, str], EventId] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    last: EventId | None = None

    async def create(self, creator: UserId = ALICE) -> "SeededRoom":
        """A create event and its maker's join."""
        partition = partition_of(self.room_id, PARTITIONS)
        await self.database.execute(
            "INSERT INTO rooms.partitions (partition) VALUES ($1) ON CONFLICT DO NOTHING", partition
        )
        await self.database.execute(
            "INSERT INTO rooms.rooms (room_id, partition, room_version, creator, create_event_id, created_ms,"
            " forward_extremities, depth, last_position) VALUES ($1, $2, '11', $3, '$create', 0, '{}', 1, 0)",
            self.room_id,
            partition,
            creator,
        )
        await self.add("m.room.create", creator, {"room_version": "11"}, state_key="")
        await self.member(creator, "join", displayname="Alice")
        return self

    async def member(self, user_id: UserId, membership: str, *, sender: UserId | None = None, **content: Any) -> Event:
        """A member event; by the user unless a sender is given."""
        return await self.add(
            "m.room.member", sender or user_id, {"membership": membership, **content}, state_key=user_id
        )

    async def message(self, sender: UserId, body: str, **content: Any) -> Event:
        """A text message."""
        return await self.add("m.room.message", sender, {"msgtype": "m.text", "body": body, **content})

    async def add(
        self,
        event_type: str,
        sender: UserId,
        content: dict[str, Any],
        *,
        state_key: str | None = None,
        device: str | None = None,
        txn_id: str | None = None,
    ) -> Event:
        """Append an event at the next position."""
        self.position += 1
        event = build_event(
            rules=ROOM_VERSIONS["11"],
            room_id=self.room_id,
            sender=sender,
            event_type=event_type,
            state_key=state_key,
            content=content,
            origin_server_ts=BEGINNING_MS + 1_000 * self.position,
            depth=self.position,
            prev_events=() if self.last is None else (self.last,),
            auth_events=(),
            server_name=SERVER,
            signing_key=KEY,
        )
        self.last = event.event_id
        await self._insert(event, device, txn_id)
        if state_key is not None:
            await self._set_state(event)
        if event_type == "m.room.history_visibility":
            self.visibility = content["history_visibility"]
        return event

    @property
    def head(self) -> OrderKey:
        """The newest event's key."""
        return OrderKey(self.position)

    async def _insert(self, event: Event, device: str | None, txn_id: str | None) -> None:
        relation = parse_relation(event.content)
        await self.database.execute(
            "INSERT INTO rooms.events (room_id, event_id, anchor, sub, type, state_key, sender, membership, depth,"
            " origin_server_ts, received_ms, pdu, sender_device, txn_id, replaces_state, history_visibility,"
            " relates_to, rel_type, relation_key, thread_root)"
            " VALUES ($1, $2, $3, 0, $4, $5, $6, $7, $8, $9, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
            self.room_id,
            event.event_id,
            self.position,
            event.type,
            event.state_key,
            event.sender,
            event.membership if event.type == "m.room.member" else None,
            event.depth,
            event.origin_server_ts,
            event.pdu,
            device,
            txn_id,
            None if event.state_key is None else self.state.get(event.state_tuple),
            self.visibility,
            None if relation is None else relation.event_id,
            None if relation is None else relation.rel_type,
            None if relation is None else relation.key,
            thread_root(relation),
        )
        await self.database.execute(
            "INSERT INTO rooms.records (partition, position, incarnation, room_id, room_previous, kind, event_id)"
            " VALUES ($1, $2, 1, $3, $4, 1, $5)",
            partition_of(self.room_id, PARTITIONS),
            self.position,
            self.room_id,
            self.position - 1,
            event.event_id,
        )
        await self.database.execute(
            "UPDATE rooms.partitions SET head = $2 WHERE partition = $1",
            partition_of(self.room_id, PARTITIONS),
            self.position,
        )
        await self.database.execute(
            "UPDATE rooms.rooms SET last_position = $2 WHERE room_id = $1", self.room_id, self.position
        )

    async def _set_state(self, event: Event) -> None:
        membership = event.membership if event.type == "m.room.member" else None
        self.state[event.state_tuple] = event.event_id
        values = (self.room_id, *event.state_tuple, event.event_id, self.position, membership)
        await self.database.execute(
            "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
            " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (room_id, type, state_key) DO UPDATE SET"
            " event_id = EXCLUDED.event_id, anchor = EXCLUDED.anchor, membership = EXCLUDED.membership",
            *values,
        )
        await self.database.execute(
            "INSERT INTO rooms.state_history (room_id, type, state_key, event_id, anchor, membership)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            *values,
        )
        if membership is not None:
            (self.joined.add if membership == "join" else self.joined.discard)(str(event.state_key))
            await self.database.execute(
                "UPDATE rooms.rooms SET joined_count = $2 WHERE room_id = $1", self.room_id, len(self.joined)
            )

"""What places a room in lists: kept with the room's tail, read once for many rooms and then kept up by its records.

Facts belong to a tail and end with it: a tail that missed records has none, and they are read again.

Order and bump stamps are milliseconds at which this server received events, which is the one measure that all
partitions share; a record that comes while its room's facts are here counts by this process's clock.

Spec: MSC4186 §Activity ordering, `bump_stamp`.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import orjson

from matrixcore.identifiers import RoomId
from services.sync.room_tails import RoomTail
from tessera.records import EventBody, LogRecord, StateBody
from tessera.space_children import MAX_CHILDREN, sort_children
from tessera.storage.room_reads.space_children import list_children
from tessera.storage.shards import RoomShards
from tessera.storage.sliding_rooms import BUMP_TYPES, list_facts

_BUMP_TYPES = frozenset(BUMP_TYPES)
_PLACING = frozenset(("m.room.create", "m.room.encryption"))


@dataclass(slots=True)
class RoomFacts:
    """One room's.

    Attributes:
        is_loaded: the rest was read, and nothing has changed it since that a record does not say.
        children: of a space; None if they have to be read.
        changes: how often records said that they have to be read again.
    """

    is_loaded: bool = False
    activity_ms: int = 0
    bump_ms: int = 0
    is_encrypted: bool = False
    room_type: str | None = None
    children: frozenset[RoomId] | None = None
    changes: int = 0

    def forget(self) -> None:
        """Have it read again, and keep what is known until then."""
        self.is_loaded = False
        self.children = None
        self.changes += 1


_UNKNOWN = RoomFacts()


def note_record(tail: RoomTail, record: LogRecord, now_ms: int) -> None:
    """Keep the facts of a room up with its newest record."""
    facts = tail.facts
    if facts is None:
        return
    body = record.body
    if isinstance(body, EventBody):
        facts.activity_ms = max(facts.activity_ms, now_ms)
        if body.type in _BUMP_TYPES:
            facts.bump_ms = max(facts.bump_ms, now_ms)
        if body.state_key is None:
            return
        if body.type == "m.space.child":
            facts.children = None
            facts.changes += 1
        elif body.type in _PLACING:
            facts.forget()
    elif isinstance(body, StateBody):
        facts.forget()  # whatever changed: resolutions are rare


async def load_facts(shards: RoomShards, tails: Collection[RoomTail]) -> None:
    """Read the facts of those of the tails that have none: one query a shard.

    Raises:
        DatabaseUnavailable
    """
    missing: dict[RoomId, tuple[RoomFacts, int]] = {}
    for tail in tails:
        if tail.facts is None or not tail.facts.is_loaded:
            # In place before the query, so that no record falls between it and what is kept up.
            facts = tail.facts = tail.facts or RoomFacts()
            missing[tail.room_id] = (facts, facts.changes)
    if not missing:
        return

    async def load(shard: str, room_ids: list[RoomId]) -> None:
        async with shards.databases[shard].reading() as tx:
            rows = await list_facts(tx, room_ids)
        for row in rows:
            facts, changes = missing[row.room_id]
            facts.activity_ms = max(facts.activity_ms, row.activity_ms)
            facts.bump_ms = max(facts.bump_ms, row.bump_ms)
            facts.is_encrypted = row.is_encrypted
            facts.room_type = room_type_of(row.create_pdu)
            facts.is_loaded = facts.changes == changes

    await asyncio.gather(*(load(shard, group) for shard, group in shards.group_rooms(missing).items()))


async def load_children(shards: RoomShards, spaces: Collection[RoomTail]) -> None:
    """Read the children of those of the spaces where they are not known: one query a shard.

    Raises:
        DatabaseUnavailable
    """
    missing = {
        tail.room_id: (tail.facts, tail.facts.changes)
        for tail in spaces
        if tail.facts is not None and tail.facts.children is None
    }
    for shard, group in shards.group_rooms(missing).items():
        async with shards.databases[shard].reading() as tx:
            found = sort_children(await list_children(tx, group, MAX_CHILDREN))
        for room_id in group:
            facts, changes = missing[room_id]
            if facts.changes == changes:  # else a record was heard meanwhile, and they are read again
                facts.children = frozenset(child.room_id for child in found.get(room_id, ()))


def facts_of(tail: RoomTail) -> RoomFacts:
    """The facts of a room; nothing where they are just being read."""
    return tail.facts or _UNKNOWN


def room_type_of(create_pdu: bytes | None) -> str | None:
    """`type` of an m.room.create event."""
    if create_pdu is None:
        return None
    value = orjson.loads(create_pdu)["content"].get("type")
    return value if isinstance(value, str) else None

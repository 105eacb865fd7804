"""Bringing the directory's lines up to the rooms' state: a projection that may be made by anybody, at any time.

Spec: C-S API §Published room directory.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from matrixcore.identifiers import RoomId
from tessera.storage import directory
from tessera.storage.database import Database
from tessera.storage.directory import RoomSummary
from tessera.storage.room_reads.summaries import RoomOutline, list_outlines
from tessera.storage.shards import RoomShards


async def load_summaries(shards: RoomShards, room_ids: Sequence[RoomId]) -> list[RoomSummary]:
    """The summaries of rooms as they are now: one query a shard. Unknown rooms are left out."""

    async def of_shard(name: str, rooms: list[RoomId]) -> list[RoomOutline]:
        async with shards.databases[name].reading() as tx:
            return await list_outlines(tx, rooms)

    groups = shards.group_rooms(dict.fromkeys(room_ids))
    found = await asyncio.gather(*(of_shard(name, rooms) for name, rooms in groups.items()))
    return [summarise(outline) for outlines in found for outline in outlines]


async def refresh_summaries(accounts: Database, shards: RoomShards, room_ids: Sequence[RoomId]) -> None:
    """Bring the directory up to date about these rooms. Repeatable."""
    summaries = await load_summaries(shards, room_ids)
    if summaries:
        async with accounts.transaction() as tx:
            await directory.set_summaries(tx, summaries)


def summarise(outline: RoomOutline) -> RoomSummary:
    """What the directory shows of a room; values of a wrong type are as if they were missing."""

    def text(event_type: str, key: str) -> str | None:
        value = _content(outline, event_type).get(key)
        return value if isinstance(value, str) else None

    return RoomSummary(
        room_id=outline.room_id,
        incarnation=outline.incarnation,
        position=outline.position,
        name=text("m.room.name", "name"),
        topic=text("m.room.topic", "topic"),
        canonical_alias=text("m.room.canonical_alias", "alias"),
        avatar_url=text("m.room.avatar", "url"),
        room_type=text("m.room.create", "type"),
        join_rule=text("m.room.join_rules", "join_rule") or "invite",
        guest_can_join=text("m.room.guest_access", "guest_access") == "can_join",
        world_readable=text("m.room.history_visibility", "history_visibility") == "world_readable",
        encryption=text("m.room.encryption", "algorithm"),
        room_version=outline.room_version,
        joined_members=outline.joined_count,
    )


def _content(outline: RoomOutline, event_type: str) -> Mapping[str, Any]:
    return outline.contents.get(event_type, {})

"""What rooms look like from outside, and the directory's lines: a projection that anybody may make at any time.

Spec: C-S API §Published room directory, §Room Summaries.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, parse_room_id
from tessera.storage import directory
from tessera.storage.database import Database
from tessera.storage.directory import RoomSummary
from tessera.storage.room_reads.summaries import RoomOutline, list_outlines
from tessera.storage.shards import RoomShards

MAX_ALLOW_RULES = 50  # of one room; more are not looked at


async def load_summaries(shards: RoomShards, room_ids: Sequence[RoomId]) -> list[RoomSummary]:
    """The summaries of rooms as they are now: one query a shard. Unknown rooms are left out."""
    return [summarise(outline) for outline in await load_outlines(shards, room_ids)]


async def load_outlines(
    shards: RoomShards, room_ids: Sequence[RoomId], server_name: ServerName | None = None
) -> list[RoomOutline]:
    """What rooms look like from outside now: one query a shard. Unknown rooms are left out.

    Args:
        server_name: the outlines tell whether it is in the rooms.
    """

    async def of_shard(name: str, rooms: list[RoomId]) -> list[RoomOutline]:
        async with shards.databases[name].reading() as tx:
            return await list_outlines(tx, rooms, server_name)

    groups = shards.group_rooms(dict.fromkeys(room_ids))
    found = await asyncio.gather(*(of_shard(name, rooms) for name, rooms in groups.items()))
    return [outline for outlines in found for outline in outlines]


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
        topic=plain_topic(_content(outline, "m.room.topic")),
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


def plain_topic(content: Mapping[str, Any]) -> str | None:
    """A topic as plain text; None if it has none. Spec: §m.room.topic, `m.topic` before `topic`."""
    block = content.get("m.topic")
    parts = block.get("m.text") if isinstance(block, Mapping) else None
    if isinstance(parts, list):
        for part in parts:
            if isinstance(part, Mapping) and part.get("mimetype", "text/plain") == "text/plain":
                body = part.get("body")
                return body if isinstance(body, str) else None
        return None
    topic = content.get("topic")
    return topic if isinstance(topic, str) else None


def allowed_rooms(outline: RoomOutline) -> list[RoomId]:
    """The rooms whose members may join a restricted room; empty for others. Spec: §Restricted rooms."""
    content = _content(outline, "m.room.join_rules")
    if content.get("join_rule") not in ("restricted", "knock_restricted"):
        return []
    allow = content.get("allow")
    named: dict[RoomId, None] = {}
    for rule in allow[:MAX_ALLOW_RULES] if isinstance(allow, list) else ():
        if isinstance(rule, Mapping) and rule.get("type") == "m.room_membership":
            try:
                named[parse_room_id(rule.get("room_id"))] = None
            except InvalidIdentifier:
                continue
    return list(named)


def summary_line(outline: RoomOutline) -> dict[str, Any]:
    """The room as RoomSummary of the API: the answer of /room_summary, a line of the hierarchy of spaces."""
    summary = summarise(outline)
    line: dict[str, Any] = {
        "room_id": summary.room_id,
        "num_joined_members": summary.joined_members,
        "world_readable": summary.world_readable,
        "guest_can_join": summary.guest_can_join,
        "join_rule": summary.join_rule,
        "room_version": summary.room_version,
    }
    for key in ("name", "topic", "canonical_alias", "avatar_url", "room_type", "encryption"):
        if (value := getattr(summary, key)) is not None:
            line[key] = value
    if allowed := allowed_rooms(outline):
        line["allowed_room_ids"] = allowed
    return line


def _content(outline: RoomOutline, event_type: str) -> Mapping[str, Any]:
    return outline.contents.get(event_type, {})

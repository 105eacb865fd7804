"""Which rooms a user may look at from outside, and what is shown of them.

Spec: C-S API §Room Summaries, GET /room_summary; §Spaces, GET /rooms/{roomId}/hierarchy.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.spaces_elsewhere import RemoteRoom
from tessera.room_summaries import allowed_rooms, load_outlines, summarise
from tessera.space_children import MAX_CHILDREN, SpaceChild, sort_children
from tessera.storage import user_rooms
from tessera.storage.database import Database
from tessera.storage.room_reads.space_children import ChildEvent, list_children
from tessera.storage.room_reads.summaries import RoomOutline
from tessera.storage.shards import RoomShards

_OPEN_RULES = frozenset(("public", "knock", "knock_restricted"))


@dataclass(frozen=True, slots=True)
class SeenRoom:
    """A room with what the user is in it; None for a caller without an access token."""

    outline: RoomOutline
    membership: str | None
    is_accessible: bool


async def load_seen_rooms(
    shards: RoomShards,
    accounts: Database,
    user_id: UserId | None,
    room_ids: Sequence[RoomId],
    server_name: ServerName | None = None,
) -> dict[RoomId, SeenRoom]:
    """Those of the rooms that are known here: one query a shard, and one of the account store.

    Args:
        server_name: this server; with it `is_followed` of the outlines says whether it is in the rooms.
    """
    outlines = await load_outlines(shards, room_ids, server_name)
    memberships: Mapping[RoomId, str] = {}
    if user_id is not None and outlines:
        wanted = {outline.room_id for outline in outlines}
        wanted.update(room_id for outline in outlines for room_id in allowed_rooms(outline))
        async with accounts.reading() as tx:
            memberships = await user_rooms.list_memberships(tx, user_id, sorted(wanted))
    return {outline.room_id: _see(outline, user_id, memberships) for outline in outlines}


async def judge_remote_rooms(
    accounts: Database, user_id: UserId | None, rooms: Mapping[RoomId, RemoteRoom]
) -> dict[RoomId, tuple[str | None, bool]]:
    """(what the user is in the room, whether the user may look at it) for rooms that others tell of: one query."""
    memberships: Mapping[RoomId, str] = {}
    if user_id is not None and rooms:
        wanted = sorted({*rooms, *(name for room in rooms.values() for name in room.allowed)})
        async with accounts.reading() as tx:
            memberships = await user_rooms.list_memberships(tx, user_id, wanted)
    default = None if user_id is None else "leave"
    return {
        room_id: (membership, room.may_be_seen(membership, memberships))
        for room_id, room in rooms.items()
        for membership in (memberships.get(room_id, default),)
    }


async def load_children(shards: RoomShards, room_ids: Sequence[RoomId]) -> dict[RoomId, Sequence[SpaceChild]]:
    """The children of spaces in their order: one query a shard."""

    async def of_shard(name: str, rooms: list[RoomId]) -> list[ChildEvent]:
        async with shards.databases[name].reading() as tx:
            return await list_children(tx, rooms, MAX_CHILDREN)

    groups = shards.group_rooms(room_ids)
    found = await asyncio.gather(*(of_shard(name, rooms) for name, rooms in groups.items()))
    return sort_children(event for events in found for event in events)


def _see(outline: RoomOutline, user_id: UserId | None, memberships: Mapping[RoomId, str]) -> SeenRoom:
    if user_id is None:
        return SeenRoom(outline, None, _is_open(outline))
    membership = memberships.get(outline.room_id, "leave")
    accessible = membership in ("join", "invite")
    if not accessible and membership != "ban":
        accessible = _is_open(outline) or _may_join_restricted(outline, memberships)
    return SeenRoom(outline, membership, accessible or summarise(outline).world_readable)


def _is_open(outline: RoomOutline) -> bool:
    """Whether everybody may look, also without an account here: who could join or ask to, or may read it anyway."""
    summary, rules = summarise(outline), ROOM_VERSIONS[outline.room_version]
    if summary.world_readable or summary.join_rule == "public":
        return True
    supported = rules.knock_restricted if summary.join_rule == "knock_restricted" else rules.knocking
    return summary.join_rule in _OPEN_RULES and supported


def _may_join_restricted(outline: RoomOutline, memberships: Mapping[RoomId, str]) -> bool:
    if not ROOM_VERSIONS[outline.room_version].restricted_joins:
        return False
    return any(memberships.get(room_id) == "join" for room_id in allowed_rooms(outline))

"""Joining restricted rooms: whether the user may by another room's membership, and who can vouch for it.

Spec: C-S API §Restricted rooms; Room Version 8, Room Version 10 (knock_restricted).
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from matrixcore.events import Event, load_event
from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_room_id, server_of
from matrixcore.power_levels import PowerLevels, creators_of
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.http.errors import MatrixError
from tessera.storage.database import Transaction
from tessera.storage.resident_rooms import list_rooms_of_server
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.members import list_joined_of_server
from tessera.storage.room_reads.rooms import RoomRow, list_memberships_of
from tessera.storage.room_reads.state import list_state_keys
from tessera.storage.shards import RoomShards

MAX_ALLOW_RULES = 50
MAX_CANDIDATES = 100
_JOIN_RULES = ("m.room.join_rules", "")
_POWER_LEVELS = ("m.room.power_levels", "")
_CREATE = ("m.room.create", "")


class CannotGrantJoin(MatrixError):
    """The user may join, but nobody of this server can vouch for it."""

    errcode = "M_UNABLE_TO_GRANT_JOIN"
    status = 403


class CannotAuthoriseJoin(MatrixError):
    """This server is in none of the rooms whose members may join: others may know more."""

    errcode = "M_UNABLE_TO_AUTHORISE_JOIN"
    status = 400


async def find_authoriser(shards: RoomShards, room: RoomRow, user_id: UserId, server_name: ServerName) -> UserId | None:
    """Who vouches for the user's join of a restricted room.

    Args:
        server_name: ours. The user may be of another server.

    Returns:
        A joined user of this server who may invite; None where nobody is needed (the room is not
        restricted) or nothing would help (no allow rule fits: the writer will refuse the join).

    Raises:
        CannotGrantJoin
        CannotAuthoriseJoin: for users of other servers only.
    """
    rules = ROOM_VERSIONS[room.room_version]
    if not rules.restricted_joins:
        return None
    async with shards.of_room(room.room_id).reading() as tx:
        state = await list_state_keys(tx, room.room_id, [_JOIN_RULES, _POWER_LEVELS, _CREATE])
        content = _content(state.get(_JOIN_RULES))
        restricted = content.get("join_rule") == "restricted"
        if not restricted and not (rules.knock_restricted and content.get("join_rule") == "knock_restricted"):
            return None
        candidates = await list_joined_of_server(tx, room.room_id, server_name, MAX_CANDIDATES)
        named = [name for name in _named_users(state, room) if server_of(name) == server_name]
        joined = await _joined_among(tx, room.room_id, named) if named else []
    allowed = _allowed_rooms(content)
    if not await _is_allowed(shards, allowed, user_id):
        if server_of(user_id) != server_name and not await _is_in_any(shards, allowed, server_name):
            raise CannotAuthoriseJoin("This server cannot tell whether the user may join")
        return None
    create = _load(state[_CREATE], room)
    levels = PowerLevels.of(None if _POWER_LEVELS not in state else _load(state[_POWER_LEVELS], room), create)
    for candidate in dict.fromkeys([*joined, *candidates]):
        if levels.may_invite(candidate):
            return candidate
    raise CannotGrantJoin("Nobody in the room can grant the join")


async def list_other_authorisers(shards: RoomShards, room: RoomRow, server_name: ServerName) -> list[UserId]:
    """Joined users of other servers who have a level that lets them invite: their servers can vouch for a join."""
    async with shards.of_room(room.room_id).reading() as tx:
        state = await list_state_keys(tx, room.room_id, [_POWER_LEVELS, _CREATE])
        named = [name for name in _named_users(state, room) if server_of(name) != server_name]
        joined = await _joined_among(tx, room.room_id, named) if named else []
    create = _load(state[_CREATE], room)
    levels = PowerLevels.of(None if _POWER_LEVELS not in state else _load(state[_POWER_LEVELS], room), create)
    return [user_id for user_id in dict.fromkeys(joined) if levels.may_invite(user_id)]


async def may_join_restricted(shards: RoomShards, room: RoomRow, user_id: UserId) -> bool:
    """Whether the user is in a room whose members may join this one, as far as this server knows."""
    async with shards.of_room(room.room_id).reading() as tx:
        state = await list_state_keys(tx, room.room_id, [_JOIN_RULES])
    return await _is_allowed(shards, _allowed_rooms(_content(state.get(_JOIN_RULES))), user_id)


async def _is_in_any(shards: RoomShards, room_ids: list[RoomId], server_name: ServerName) -> bool:
    for name, rooms in shards.group_rooms(room_ids).items():
        async with shards.databases[name].reading() as tx:
            if await list_rooms_of_server(tx, rooms, server_name):
                return True
    return False


async def _is_allowed(shards: RoomShards, room_ids: list[RoomId], user_id: UserId) -> bool:
    """Whether the user is joined to one of these rooms: one query a shard."""

    async def joined_in(name: str, rooms: list[RoomId]) -> bool:
        async with shards.databases[name].reading() as tx:
            memberships = await list_memberships_of(tx, rooms, user_id)
        return "join" in memberships.values()

    groups = shards.group_rooms(room_ids)
    return any(await asyncio.gather(*(joined_in(name, rooms) for name, rooms in groups.items())))


def _allowed_rooms(content: Mapping[str, Any]) -> list[RoomId]:
    allow = content.get("allow")
    found: list[RoomId] = []
    for rule in allow[:MAX_ALLOW_RULES] if isinstance(allow, list) else ():
        if isinstance(rule, dict) and rule.get("type") == "m.room_membership":
            try:
                found.append(parse_room_id(rule.get("room_id")))
            except InvalidIdentifier:
                continue
    return found


def _named_users(state: Mapping[tuple[str, str], EventRow], room: RoomRow) -> list[UserId]:
    """Users who have a level of their own: the likeliest to be able to invite."""
    users = _content(state.get(_POWER_LEVELS)).get("users")
    named = list(users)[:MAX_CANDIDATES] if isinstance(users, dict) else []
    return [*creators_of(_load(state[_CREATE], room)), *named]


async def _joined_among(tx: Transaction, room_id: RoomId, user_ids: list[UserId]) -> list[UserId]:
    found = await list_state_keys(tx, room_id, [("m.room.member", user_id) for user_id in user_ids])
    return [UserId(key) for (_, key), event in found.items() if event.membership == "join"]


def _content(event: EventRow | None) -> Mapping[str, Any]:
    if event is None:
        return {}
    content: Mapping[str, Any] = orjson.loads(event.pdu)["content"]
    return content


def _load(event: EventRow, room: RoomRow) -> Event:
    return load_event(event.pdu, event.event_id, ROOM_VERSIONS[room.room_version], room_id=room.room_id)

"""Letting users of other servers join rooms that we are in.

Spec: S-S API §Joining Rooms; C-S API §Restricted rooms.
"""

from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response, StreamingResponse

from matrixcore.event_signing import sign_event
from matrixcore.events import Event
from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from matrixcore.room_versions import ROOM_VERSIONS
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.member_events import (
    check_version,
    make_template,
    parse_signed,
    require_room,
    require_signatures,
    room_of,
    take_into_room,
    user_of,
)
from services.federation_in.metrics import counted
from services.federation_in.room_states import RoomState, find_state_before, write_state
from services.federation_in.routing import V1, V2, CurrentPeer, Peer, peer_router
from tessera.http.errors import Forbidden, NotFound
from tessera.http.replies import json_reply
from tessera.restricted_joins import CannotGrantJoin, find_authoriser, may_join_restricted
from tessera.storage.resident_rooms import list_joined_servers
from tessera.storage.room_reads.rooms import RoomForReader, find_for_reader

router = peer_router()

PER_ROOM_LIMIT = "rc_joins_per_room"


@router.get(V1 + "/make_join/{room_id}/{user_id}")
async def make_join(
    room_id: str,
    user_id: str,
    peer: CurrentPeer,
    deps: FederationInDep,
    ver: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """A join for the asking server to sign, with who authorises it in a restricted room."""
    room, user = room_of(room_id), user_of(user_id, peer.origin)
    deps.limits.check(PER_ROOM_LIMIT, room)
    async with deps.shards.of_room(room).reading() as tx:
        tips = await require_room(tx, deps, room, peer)
        check_version(tips, ver or ())
        found = await find_for_reader(tx, room, user)
    content: dict[str, Any] = {"membership": "join"}
    if found is not None and found.membership not in ("join", "invite"):
        authoriser = await _authoriser_of(deps, found, user)
        if authoriser is not None:
            content["join_authorised_via_users_server"] = authoriser
    async with deps.shards.of_room(room).reading() as tx:
        return json_reply(await make_template(deps, tx, room, tips, user, content))


async def _authoriser_of(deps: FederationInDeps, found: RoomForReader, user: UserId) -> UserId | None:
    try:
        return await find_authoriser(deps.shards, found.room, user, deps.server_name)
    except CannotGrantJoin as error:
        raise CannotGrantJoin(error.message, status=400) from None


@router.put(V2 + "/send_join/{room_id}/{event_id}")
async def send_join_v2(
    room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep, omit_members: bool = False
) -> Response:
    """Take a signed join into the room, and answer the state before it."""
    event, state = await take_join(deps, peer, room_of(room_id), event_id)
    servers: list[ServerName] = []
    if omit_members:
        async with deps.shards.of_room(event.room_id).reading() as tx:
            servers = [name for name in await list_joined_servers(tx, event.room_id) if name != peer.origin]
    parts = write_state(deps.shards.of_room(event.room_id), state, event, deps.server_name, servers, omit_members)
    return StreamingResponse(parts, media_type="application/json")


@router.put(V1 + "/send_join/{room_id}/{event_id}")
async def send_join_v1(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The older form: the answer is an array of 200 and what the newer one answers."""
    event, state = await take_join(deps, peer, room_of(room_id), event_id)
    parts = write_state(deps.shards.of_room(event.room_id), state, event, deps.server_name, [], False, as_pair=True)
    return StreamingResponse(parts, media_type="application/json")


@counted("join")
async def take_join(deps: FederationInDeps, peer: Peer, room_id: RoomId, event_id: str) -> tuple[Event, RoomState]:
    """Check a signed join, sign it where one of our users authorises it, and have it committed.

    Raises:
        MatrixError
    """
    deps.limits.check(PER_ROOM_LIMIT, room_id)
    async with deps.shards.of_room(room_id).reading() as tx:
        tips = await require_room(tx, deps, room_id, peer)
    rules = ROOM_VERSIONS[tips.room_version]
    event = parse_signed(peer, room_id, event_id, "join", peer.content, rules)
    if _is_ours_to_authorise(event, deps.server_name):
        await _require_allowed(deps, event)
        event = sign_event(event, deps.server_name, deps.signing_key)
    await require_signatures(deps, event)
    await take_into_room(deps, event)
    state = await find_state_before(deps.shards.of_room(room_id), event)
    if state is None:
        raise NotFound("The join is not in the room")
    return event, state


def _is_ours_to_authorise(event: Event, server_name: ServerName) -> bool:
    try:
        authoriser = parse_user_id(event.content.get("join_authorised_via_users_server"))
    except InvalidIdentifier:
        return False
    return event.rules.restricted_joins and server_of(authoriser) == server_name


async def _require_allowed(deps: FederationInDeps, event: Event) -> None:
    """Our signature says that the user is in a room whose members may join: it must be so still."""
    async with deps.shards.of_room(event.room_id).reading() as tx:
        found = await find_for_reader(tx, event.room_id, event.sender)
    if found is None:
        raise NotFound("This server is not in the room")
    if found.membership in ("join", "invite"):
        return
    if not await may_join_restricted(deps.shards, found.room, event.sender):
        raise Forbidden("The user is in none of the rooms whose members may join")

"""Invites that began with an e-mail address and have found their user. Spec: S-S API §Third-party invites."""

from collections.abc import Mapping
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_room_id, parse_user_id, server_of
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.member_events import changes_of, room_of
from services.federation_in.metrics import counted
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.commands import Append, NewEvent
from tessera.federation.client import endpoint
from tessera.federation.errors import PeerError
from tessera.federation.handshakes import Handshaker
from tessera.federation.inviting import invite_elsewhere
from tessera.http.bodies import read_json_object
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MatrixError
from tessera.http.replies import json_reply
from tessera.storage import users

log = structlog.get_logger(__name__)
router = peer_router()

MAX_INVITES = 20  # of one address that has found its user
MAX_BODY_BYTES = 256 << 10


@router.put(V1 + "/exchange_third_party_invite/{room_id}")
@counted("third_party_invite")
async def exchange_third_party_invite(room_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """Invite the user whom a third-party invite of one of our users has found; the identity server has signed it."""
    room = room_of(room_id)
    content = peer.content.get("content")
    if peer.content.get("type") != "m.room.member" or not isinstance(content, Mapping):
        raise BadJson("The body must be an m.room.member event")
    if peer.content.get("room_id") != room:
        raise InvalidParam("The event is not of the room of the path")
    if content.get("membership") != "invite" or "third_party_invite" not in content:
        raise InvalidParam("The event is no third-party invite")
    sender, invitee = _user(peer.content.get("sender"), "sender"), _user(peer.content.get("state_key"), "state_key")
    if server_of(sender) != deps.server_name:
        raise InvalidParam("The sender is not a user of this server")
    if server_of(invitee) != peer.origin:
        raise Forbidden("The invitee is not a user of your server")
    deps.limits.check("rc_invites.per_room", room)
    deps.limits.check("rc_invites.per_issuer", sender)
    wanted = {"membership": "invite", "third_party_invite": content["third_party_invite"]}
    await invite_elsewhere(changes_of(deps), shaker_of(deps), sender, room, invitee, wanted)
    return json_reply({})


@router.put(V1 + "/3pid/onbind")
async def on_bind_third_party_identifier(request: Request, deps: FederationInDep) -> Response:
    """An address has found its user: have the invites that wait for it made by the servers that sent them.

    Nobody proves who asks. What is asked is proven by the identity server's signature in each invite, which the room
    checks, and how often by the limits of invites.
    """
    body = await read_json_object(request, MAX_BODY_BYTES)
    user_id = _user(body.get("mxid"), "mxid")
    invites = body.get("invites")
    if server_of(user_id) != deps.server_name:
        raise InvalidParam("mxid is not a user of this server")
    if not isinstance(invites, list) or not all(isinstance(one, Mapping) for one in invites):
        raise BadJson("invites must be a list of objects")
    async with deps.accounts.reading() as tx:
        user = await users.find_user(tx, user_id)
    if user is None or user.deactivated:
        raise InvalidParam("There is no such user")
    for one in invites[:MAX_INVITES]:
        deps.limits.check("rc_invites.per_user", user_id)
        try:
            await _make_invite(deps, user_id, one)
        except (MatrixError, PeerError) as error:
            log.info("third-party invite not made", user_id=user_id, reason=str(error))
    return json_reply({})


async def _make_invite(deps: FederationInDeps, user_id: UserId, invite: Mapping[str, Any]) -> None:
    sender, room_id, signed = _user(invite.get("sender"), "sender"), _room(invite.get("room_id")), invite.get("signed")
    if not isinstance(signed, Mapping) or signed.get("mxid") != user_id:
        raise InvalidParam("signed is not about the user")
    shown = {"display_name": str(invite.get("address", ""))[:3] + "...", "signed": dict(signed)}
    content = {"membership": "invite", "third_party_invite": shown}
    if server_of(sender) == deps.server_name:
        new = NewEvent("m.room.member", user_id, content)
        await changes_of(deps).submit(room_id, sender, Append(new, done_if_membership=("invite", "join")))
        return
    body = {"type": "m.room.member", "room_id": room_id, "sender": sender, "state_key": user_id, "content": content}
    path = endpoint(V1 + "/exchange_third_party_invite/{}", room_id)
    await deps.federation.client.put(server_of(sender), path, body)


def shaker_of(deps: FederationInDeps) -> Handshaker:
    """Our side of handshakes."""
    return Handshaker(deps.server_name, deps.signing_key, deps.federation.client, deps.federation.keyring, deps.ids)


def _user(value: object, name: str) -> UserId:
    try:
        return parse_user_id(value)
    except InvalidIdentifier as error:
        raise InvalidParam(f"{name}: {error}") from None


def _room(value: object) -> RoomId:
    try:
        return parse_room_id(value)
    except InvalidIdentifier as error:
        raise InvalidParam(f"room_id: {error}") from None

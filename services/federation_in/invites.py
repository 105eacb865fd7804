"""Invites of our users by other servers: signed here, and told to the user.

Where this server is in the room, the event comes as part of the room, too, and is told then.

Spec: S-S API §Inviting to a room; C-S API §Invite permission.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import orjson
import structlog
from starlette.responses import Response

from matrixcore.auth_events import CREATE
from matrixcore.event_hashes import check_content_hash
from matrixcore.event_signing import sign_event
from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_user_id, server_of
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.member_events import IncompatibleRoomVersion, changes_of, room_of
from services.federation_in.metrics import counted
from services.federation_in.routing import V1, V2, CurrentPeer, Peer, peer_router
from tessera.commands import NoteMembership
from tessera.federation.handshakes import MAX_STRIPPED_EVENTS, stripped_events
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MatrixError, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import invite_permissions, users

log = structlog.get_logger(__name__)
router = peer_router()


@router.put(V2 + "/invite/{room_id}/{event_id}")
async def send_invite_v2(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """Sign an invite of one of our users, and tell the user."""
    version = peer.content.get("room_version")
    if version is None:
        raise MissingParam("room_version is missing")
    event = await take_invite(
        deps,
        peer,
        room_of(room_id),
        event_id,
        version,
        peer.content.get("event"),
        peer.content.get("invite_room_state"),
    )
    return json_reply({"event": orjson.Fragment(event.pdu)})


@router.put(V1 + "/invite/{room_id}/{event_id}")
async def send_invite_v1(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The older form, which is for rooms of versions 1 and 2 only."""
    unsigned = peer.content.get("unsigned")
    shown = unsigned.get("invite_room_state") if isinstance(unsigned, Mapping) else None
    event = await take_invite(deps, peer, room_of(room_id), event_id, "1", peer.content, shown)
    return json_reply([200, {"event": orjson.Fragment(event.pdu)}])


@counted("invite")
async def take_invite(
    deps: FederationInDeps, peer: Peer, room_id: RoomId, event_id: str, version: object, fields: object, shown: object
) -> Event:
    """Check an invite, sign it and tell the invitee; doing it again changes nothing.

    Args:
        shown: invite_room_state.

    Raises:
        MatrixError
    """
    rules = ROOM_VERSIONS.get(version) if isinstance(version, str) else None
    if rules is None:
        raise IncompatibleRoomVersion(str(version))
    event = parse_invite(deps, peer, room_id, event_id, fields, rules)
    invitee = UserId(event.state_key or "")
    deps.limits.check("rc_invites.per_user", invitee)
    deps.limits.check("rc_invites.per_issuer", event.sender)
    await _require_signed(deps, event)
    state = await check_shown_state(deps, event, shown)
    await _require_invitable(deps, invitee)
    signed = sign_event(event, deps.server_name, deps.signing_key)
    stripped = orjson.dumps([*state, _stripped(event)])
    note = NoteMembership(invitee, "invite", event.event_id, event.sender, stripped)
    command_id = sha256(f"invite {room_id} {event.event_id}".encode()).digest()
    try:
        await changes_of(deps).submit(room_id, event.sender, note, command_id=command_id)
    except MatrixError as error:
        if error.errcode != "M_BAD_STATE":  # this server is in the room, and gets the event with the others
            raise
    return signed


def parse_invite(
    deps: FederationInDeps, peer: Peer, room_id: RoomId, event_id: str, fields: object, rules: RoomVersionRules
) -> Event:
    """An invite of one of our users by one of the asking server's; signatures are not checked yet."""
    if not isinstance(fields, Mapping):
        raise BadJson("event must be an object")
    try:
        event = parse_event(fields, rules)
    except InvalidEvent as error:
        raise BadJson(f"event: {error.reason}") from None
    if event.room_id != room_id or event.event_id != event_id:
        raise InvalidParam("The event is not that of the path")
    if event.type != "m.room.member" or event.membership != "invite":
        raise InvalidParam("The event is no invite")
    if server_of(event.sender) != peer.origin:
        raise InvalidParam("The sender is not a user of your server")
    try:
        invitee = parse_user_id(event.state_key)
    except InvalidIdentifier:
        raise InvalidParam("The invitee is no user") from None
    if server_of(invitee) != deps.server_name:
        raise InvalidParam("The invitee is not a user of this server")
    if not check_content_hash(event.fields, rules):
        raise InvalidParam("The event's hash is wrong")
    return event


async def _require_signed(deps: FederationInDeps, event: Event) -> None:
    (wrong,) = await deps.federation.keyring.verify_events([event], event.rules)
    if wrong is not None:
        raise Forbidden(f"The signature is wrong: {wrong}")


async def check_shown_state(deps: FederationInDeps, event: Event, shown: object) -> list[dict[str, Any]]:
    """The stripped form of what the inviting server shows of the room.

    Room versions whose IDs prove their create event must show it, whole and signed; older servers show stripped
    events in the other versions.

    Raises:
        InvalidParam: 1.16 and later: something of it is not of this room, or its create event is missing.
    """
    if shown is not None and not isinstance(shown, list):
        raise BadJson("invite_room_state must be a list")
    entries: Sequence[object] = (shown or [])[:MAX_STRIPPED_EVENTS]
    if event.rules.room_id_is_create_event_id:
        await _require_whole(deps, event, entries)
    return stripped_events(list(entries))


async def _require_whole(deps: FederationInDeps, event: Event, entries: Sequence[object]) -> None:
    parsed: list[Event] = []
    for entry in entries:
        try:
            parsed.append(parse_event(entry if isinstance(entry, Mapping) else {}, event.rules))
        except InvalidEvent as error:
            raise InvalidParam(f"invite_room_state: {error.reason}") from None
    if any(one.room_id != event.room_id or one.state_key is None for one in parsed):
        raise InvalidParam("invite_room_state has an event that is no state of the room")
    if not any((one.type, one.state_key) == CREATE for one in parsed):
        raise InvalidParam("invite_room_state lacks m.room.create")
    verdicts = await deps.federation.keyring.verify_events(parsed, event.rules)
    if any(wrong is not None for wrong in verdicts):
        raise InvalidParam("invite_room_state has an event with a wrong signature")


async def _require_invitable(deps: FederationInDeps, invitee: UserId) -> None:
    if deps.bridges is not None:
        await deps.bridges.make_users([invitee])
    async with deps.accounts.reading() as tx:
        user = await users.find_user(tx, invitee)
        blocking = await invite_permissions.list_blocking(tx, [invitee])
    if user is None or user.deactivated:
        raise NotFound("There is no such user")
    if blocking:
        raise MatrixError("The user does not accept invites", errcode="M_INVITE_BLOCKED", status=403)


def _stripped(event: Event) -> dict[str, Any]:
    return {"content": event.content, "sender": event.sender, "state_key": event.state_key, "type": event.type}

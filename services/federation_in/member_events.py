"""Member events of other servers' users that this server, being in the room, helps to make and takes into the room.

A template first, then the signed event: joins, knocks and leaves go the same way and differ in what they answer.

Spec: S-S API §Joining Rooms, §Knocking upon a room, §Leaving Rooms (Rejecting Invites).
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from matrixcore.auth_events import CREATE, auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.event_building import build_event
from matrixcore.event_hashes import check_content_hash, reference_hash_base64
from matrixcore.events import MAX_PREV_EVENTS, Event, InvalidEvent, load_event, parse_event
from matrixcore.identifiers import (
    EventId,
    InvalidIdentifier,
    RoomId,
    ServerName,
    StateKey,
    UserId,
    parse_room_id,
    parse_user_id,
    server_of,
)
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersionRules
from matrixcore.verdicts import Accepted
from services.federation_in.dependencies import FederationInDeps
from tessera.commands import AppendPdu
from tessera.federation.acl import is_server_allowed
from tessera.federation.authentication import Peer
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MatrixError, NotFound
from tessera.room_changes import RoomChanges
from tessera.storage.database import Transaction
from tessera.storage.resident_rooms import RoomTips, find_tips, load_pdus
from tessera.storage.room_reads.state import list_state_keys

_ACL: StateKey = ("m.room.server_acl", "")
_DUMMY = "dummy"


class IncompatibleRoomVersion(MatrixError):
    """The asking server does not know the room's version, or this one does not."""

    errcode = "M_INCOMPATIBLE_ROOM_VERSION"
    status = 400

    def __init__(self, version: str) -> None:
        super().__init__(f"The room is of version {version}", fields={"room_version": version})


def changes_of(deps: FederationInDeps) -> RoomChanges:
    """The way to change rooms."""
    return RoomChanges(
        deps.commands,
        deps.shards,
        deps.accounts,
        deps.fanout,
        deps.clock,
        deps.ids,
        policy=deps.policy_servers,
    )


def room_of(text: str) -> RoomId:
    """The room ID of a path."""
    try:
        return parse_room_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"roomId: {error}") from None


def user_of(text: str, origin: ServerName) -> UserId:
    """The user ID of a path, who must be one of the asking server's."""
    try:
        user_id = parse_user_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"userId: {error}") from None
    if server_of(user_id) != origin:
        raise Forbidden("The user is not one of your server")
    return user_id


async def require_room(tx: Transaction, deps: FederationInDeps, room_id: RoomId, peer: Peer) -> RoomTips:
    """A room in which this server has members and the asking one may take part.

    Raises:
        NotFound, Forbidden
    """
    tips = await find_tips(tx, room_id, deps.server_name)
    if tips is None:
        raise NotFound("This server is not in the room")
    acl = (await list_state_keys(tx, room_id, [_ACL])).get(_ACL)
    content = None if acl is None else load_event(acl.pdu, acl.event_id, ROOM_VERSIONS[tips.room_version]).content
    if not is_server_allowed(content, peer.origin):
        raise Forbidden("Your server is denied access to the room")
    return tips


def check_version(tips: RoomTips, versions: Sequence[str]) -> None:
    """The room's version must be one that the asking server knows.

    Raises:
        IncompatibleRoomVersion
    """
    if tips.room_version not in (versions or ["1"]):
        raise IncompatibleRoomVersion(tips.room_version)


async def make_template(
    deps: FederationInDeps,
    tx: Transaction,
    room_id: RoomId,
    tips: RoomTips,
    user_id: UserId,
    content: Mapping[str, Any],
) -> dict[str, Any]:
    """The answer to make_join, make_knock, make_leave.

    Raises:
        Forbidden: the room does not allow the event.
    """
    rules = ROOM_VERSIONS[tips.room_version]
    keys = [CREATE, *auth_state_keys("m.room.member", user_id, user_id, content, rules)]
    rows = await list_state_keys(tx, room_id, list(dict.fromkeys(keys)))
    state = {key: load_event(row.pdu, row.event_id, rules, room_id=room_id) for key, row in rows.items()}
    cited = [event for key, event in state.items() if key != CREATE or not rules.room_id_is_create_event_id]
    prev_events = tips.forward_extremities[:MAX_PREV_EVENTS]
    event = build_event(
        rules=rules,
        room_id=room_id,
        sender=user_id,
        event_type="m.room.member",
        state_key=user_id,
        content=content,
        origin_server_ts=deps.clock.now_ms(),
        depth=min(tips.depth + 1, 2**53 - 1),
        prev_events=prev_events,
        auth_events=[event.event_id for event in cited],
        server_name=deps.server_name,
        signing_key=deps.signing_key,
        event_id=EventId(f"${_DUMMY}:{server_of(user_id)}") if rules.event_id_format is EventIdFormat.GIVEN else None,
        reference_hashes=await _reference_hashes(tx, room_id, rules, prev_events, cited),
    )
    verdict = check_auth(event, state)
    if not isinstance(verdict, Accepted):
        raise Forbidden(verdict.reason)
    hidden = ("hashes", "signatures", "event_id")
    fields = {key: value for key, value in event.fields.items() if key not in hidden}
    return {"room_version": rules.version, "event": fields | {"origin": deps.server_name}}


async def _reference_hashes(
    tx: Transaction, room_id: RoomId, rules: RoomVersionRules, prev_events: Sequence[EventId], cited: Sequence[Event]
) -> dict[EventId, str] | None:
    """What references of room versions 1 and 2 carry."""
    if rules.event_id_format is not EventIdFormat.GIVEN:
        return None
    pdus = await load_pdus(tx, room_id, prev_events)
    events = [*cited, *(load_event(pdu, event_id, rules, room_id=room_id) for event_id, pdu in pdus.items())]
    return {event.event_id: reference_hash_base64(event.fields, rules) for event in events}


def parse_signed(
    peer: Peer, room_id: RoomId, event_id: str, membership: str, content: Mapping[str, Any], rules: RoomVersionRules
) -> Event:
    """The member event that a server sends for one of its users, its signatures not checked yet.

    Raises:
        BadJson, InvalidParam: it is none, or not the one of the path. Forbidden: it is of another server's user.
    """
    try:
        event = parse_event(content, rules)
    except InvalidEvent as error:
        raise BadJson(error.reason) from None
    if event.room_id != room_id or event.event_id != event_id:
        raise InvalidParam("The event is not that of the path")
    if event.type != "m.room.member" or event.membership != membership or event.state_key != event.sender:
        raise InvalidParam(f"The event is no {membership}")
    if server_of(event.sender) != peer.origin:
        raise Forbidden("The sender is not one of your server")
    if not check_content_hash(event.fields, rules):
        raise InvalidParam("The event's hash is wrong")
    return event


async def require_signatures(deps: FederationInDeps, event: Event) -> None:
    """Raise Forbidden unless all who must have signed an event have."""
    (wrong,) = await deps.federation.keyring.verify_events([event], event.rules)
    if wrong is not None:
        raise Forbidden(f"The signature is wrong: {wrong}")


async def take_into_room(deps: FederationInDeps, event: Event) -> None:
    """Have a member event of another server's user committed; a repetition changes nothing.

    Raises:
        MatrixError: the room does not allow it (403), or its writer does not answer (503).
    """
    command_id = sha256(f"member {event.room_id} {event.event_id}".encode()).digest()
    await changes_of(deps).submit(event.room_id, event.sender, AppendPdu(event.pdu), command_id=command_id)

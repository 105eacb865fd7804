"""The handshakes by which our users enter and leave rooms on other servers: ask for a template, finish it, send it.

Spec: S-S API §Joining Rooms, §Knocking upon a room, §Leaving Rooms (Rejecting Invites), §Inviting to a room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrixcore.canonical_json import parse_exact_json
from matrixcore.event_building import finish_event
from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId, server_of
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersionRules
from matrixcore.signing import SigningKey
from tessera.federation.client import FederationClient, endpoint
from tessera.federation.errors import PeerAnsweredBadly, PeerError, PeerRefused
from tessera.federation.keyring import Keyring
from tessera.http.errors import MatrixError
from tessera.ids import IdSource

TEMPLATE_SECONDS = 15.0
SEND_SECONDS = 30.0
MAX_TEMPLATE_BYTES = 256 << 10
MAX_STRIPPED_EVENTS = 50
MAX_JOIN_BYTES = 64 << 20  # of an answer without members, of which only the event is wanted
EVENT_LOCALPART_LETTERS = 18
_KEPT = ("auth_events", "prev_events", "depth", "room_id", "sender", "state_key", "type")
# What a client is told of a peer's refusal; everything else is our trouble with the peer.
_TOLD = frozenset(
    (
        "M_FORBIDDEN", "M_NOT_FOUND", "M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION", "M_INVITE_BLOCKED",
        "M_UNABLE_TO_AUTHORISE_JOIN", "M_UNABLE_TO_GRANT_JOIN", "M_BAD_STATE", "M_LIMIT_EXCEEDED",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Handshaker:
    """What our side of a handshake needs."""

    server_name: ServerName
    signing_key: SigningKey
    client: FederationClient
    keyring: Keyring
    ids: IdSource


@dataclass(frozen=True, slots=True)
class Template:
    """A member event as a resident server would have it, without content, time, hashes and signature."""

    server: ServerName
    rules: RoomVersionRules
    fields: Mapping[str, Any]


async def ask_template(
    shaker: Handshaker, server: ServerName, membership: str, room_id: RoomId, user_id: UserId
) -> Template:
    """The answer to make_join, make_knock or make_leave.

    Raises:
        PeerError: the server cannot be asked, refuses, or answers what does not fit.
    """
    name = {"join": "make_join", "knock": "make_knock", "leave": "make_leave"}[membership]
    query: dict[str, Sequence[str]] = {} if membership == "leave" else {"ver": list(ROOM_VERSIONS)}
    path = endpoint(f"/_matrix/federation/v1/{name}/{{}}/{{}}", room_id, user_id)
    answer = await shaker.client.get(server, path, query, timeout_s=TEMPLATE_SECONDS, max_bytes=MAX_TEMPLATE_BYTES)
    version, fields = answer.get("room_version", "1"), answer.get("event")
    rules = ROOM_VERSIONS.get(version) if isinstance(version, str) else None
    if rules is None:
        raise PeerRefused(400, "M_UNSUPPORTED_ROOM_VERSION", "The room's version is not supported here")
    content = fields.get("content") if isinstance(fields, Mapping) else None
    if not isinstance(fields, Mapping) or not isinstance(content, Mapping):
        raise PeerAnsweredBadly("no template of an event")
    said = (fields.get("type"), fields.get("room_id"), fields.get("sender"), fields.get("state_key"))
    if said != ("m.room.member", room_id, user_id, user_id) or content.get("membership") != membership:
        raise PeerAnsweredBadly("a template of another event")
    if not isinstance(fields.get("prev_events"), list) or not fields["prev_events"]:
        raise PeerAnsweredBadly("a template without prev_events")
    return Template(server, rules, fields)


def finish_template(shaker: Handshaker, template: Template, content: Mapping[str, Any], now_ms: int) -> Event:
    """Our user's event, signed.

    Args:
        content: the membership and what the user adds; who authorises a join stands in the template.

    Raises:
        PeerAnsweredBadly: the template does not make an event.
    """
    fields = {key: template.fields[key] for key in _KEPT if key in template.fields}
    fields["content"] = dict(content)
    authoriser = template.fields["content"].get("join_authorised_via_users_server")
    if content["membership"] == "join" and isinstance(authoriser, str):
        fields["content"]["join_authorised_via_users_server"] = authoriser
    fields["origin_server_ts"] = now_ms
    if template.rules.event_id_format is EventIdFormat.GIVEN:
        fields["event_id"] = EventId(f"${shaker.ids.letters(EVENT_LOCALPART_LETTERS)}:{shaker.server_name}")
    try:
        event = finish_event(fields, template.rules, server_name=shaker.server_name, signing_key=shaker.signing_key)
        return parse_event(event.pdu, template.rules)
    except (InvalidEvent, KeyError, TypeError, IndexError) as error:
        raise PeerAnsweredBadly(f"the template makes no event: {error}") from error


async def leave_there(
    shaker: Handshaker, server: ServerName, room_id: RoomId, user_id: UserId, content: Mapping[str, Any], now_ms: int
) -> Event:
    """Leave a room, reject an invite or take a knock back by one of the room's servers.

    Raises:
        PeerError
    """
    template = await ask_template(shaker, server, "leave", room_id, user_id)
    event = finish_template(shaker, template, content, now_ms)
    path = endpoint("/_matrix/federation/v2/send_leave/{}/{}", room_id, event.event_id)
    await shaker.client.put(server, path, event.pdu, timeout_s=SEND_SECONDS)
    return event


async def knock_there(
    shaker: Handshaker, server: ServerName, room_id: RoomId, user_id: UserId, content: Mapping[str, Any], now_ms: int
) -> tuple[Event, list[dict[str, Any]]]:
    """Knock on a room by one of its servers: (the knock, stripped state of the room).

    Raises:
        PeerError
    """
    template = await ask_template(shaker, server, "knock", room_id, user_id)
    event = finish_template(shaker, template, content, now_ms)
    path = endpoint("/_matrix/federation/v1/send_knock/{}/{}", room_id, event.event_id)
    answer = await shaker.client.put(server, path, event.pdu, timeout_s=SEND_SECONDS)
    return event, stripped_events(answer.get("knock_room_state"))


async def have_join_signed(shaker: Handshaker, server: ServerName, event: Event) -> Event:
    """Have the server of whoever vouches for a join take it and sign it; the event with its signature.

    Raises:
        PeerError
    """
    path = endpoint("/_matrix/federation/v2/send_join/{}/{}", event.room_id, event.event_id)
    answer = await shaker.client.put(
        server, path, event.pdu, {"omit_members": "true"}, timeout_s=SEND_SECONDS, max_bytes=MAX_JOIN_BYTES
    )
    signatures = _mapping(_mapping(answer.get("event")).get("signatures"))
    signed = with_signatures_of(event, server, _mapping(signatures.get(server)))
    (wrong,) = await shaker.keyring.verify_events([signed], signed.rules)
    if wrong is not None:
        raise PeerAnsweredBadly(f"the join is not signed by {server}: {wrong}")
    return signed


async def invite_there(shaker: Handshaker, event: Event, room_state: Sequence[Mapping[str, Any]]) -> Event:
    """Have the invitee's server sign an invite; the event with its signature.

    Args:
        room_state: what the invitee may see of the room: whole PDUs, as room version 12 and Matrix 1.16 want them.

    Raises:
        PeerError: it cannot be asked, refuses, or has not signed.
    """
    server = server_of(UserId(event.state_key or ""))
    path = endpoint("/_matrix/federation/{}/invite/{}/{}", "v2", event.room_id, event.event_id)
    body = {
        "event": dict(event.fields),
        "invite_room_state": list(room_state),
        "room_version": event.rules.version,
    }
    try:
        answer = await shaker.client.put(server, path, body, timeout_s=SEND_SECONDS)
    except PeerRefused as refused:
        if refused.status != 404 or refused.errcode != "M_UNRECOGNIZED":
            raise
        answer = dict(await _invite_by_v1(shaker, server, event, room_state))
    try:
        signed = parse_event(_mapping(answer.get("event")), event.rules)
    except InvalidEvent as error:
        raise PeerAnsweredBadly(f"no event: {error.reason}") from error
    if signed.event_id != event.event_id:
        raise PeerAnsweredBadly("another event")
    signatures = signed.fields.get("signatures")
    theirs = signatures.get(server) if isinstance(signatures, Mapping) else None
    if not isinstance(theirs, Mapping):
        raise PeerAnsweredBadly("the invite is not signed")
    return with_signatures_of(event, server, theirs)


async def _invite_by_v1(
    shaker: Handshaker, server: ServerName, event: Event, room_state: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The older form: versions 1 and 2 only, and the answer is an array."""
    if event.rules.event_id_format is not EventIdFormat.GIVEN:
        raise PeerRefused(400, "M_UNSUPPORTED_ROOM_VERSION", "The user's server does not support this room version")
    path = endpoint("/_matrix/federation/{}/invite/{}/{}", "v1", event.room_id, event.event_id)
    body = {**event.fields, "unsigned": {"invite_room_state": list(room_state)}}
    async with shaker.client.stream_put(server, path, body, timeout_s=SEND_SECONDS) as stream:
        try:
            answer = parse_exact_json(await stream.read())
        except ValueError as error:
            raise PeerAnsweredBadly("no JSON") from error
    if not isinstance(answer, list) or len(answer) != 2:
        raise PeerAnsweredBadly("no answer to an invite")
    return _mapping(answer[1])


def with_signatures_of(event: Event, server: ServerName, signatures: Mapping[str, Any]) -> Event:
    """Our own event with another server's signatures added: nothing else of what it answered is taken."""
    kept = {key: value for key, value in signatures.items() if isinstance(value, str)}
    fields = {**event.fields, "signatures": {**event.fields["signatures"], server: kept}}
    try:
        return parse_event(fields, event.rules)
    except InvalidEvent as error:
        raise PeerAnsweredBadly(f"signatures that make no event: {error.reason}") from error


def stripped_events(value: object) -> list[dict[str, Any]]:
    """The stripped form of what a peer shows of a room: stripped events, or whole PDUs. Others are left out."""
    events = value[:MAX_STRIPPED_EVENTS] if isinstance(value, list) else []
    return [stripped for event in events if (stripped := _strip(event)) is not None]


def _strip(event: object) -> dict[str, Any] | None:
    if not isinstance(event, Mapping) or not isinstance(event.get("content"), Mapping):
        return None
    names = ("sender", "state_key", "type")
    if any(not isinstance(event.get(name), str) or "\0" in event[name] for name in names):
        return None
    return {"content": event["content"], **{name: event[name] for name in names}}


def client_error(errors: Sequence[PeerError]) -> MatrixError:
    """What a client is told when no server did what was asked: the most telling refusal."""
    for error in errors:
        if isinstance(error, PeerRefused) and error.errcode in _TOLD and 400 <= error.status < 500:
            return MatrixError(
                error.message or "Refused by the room's server", errcode=error.errcode, status=error.status
            )
    return MatrixError("No server of the room could be reached", errcode="M_UNKNOWN", status=502)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

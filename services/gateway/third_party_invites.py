"""Inviting whoever an address belongs to.

An identity server says whose the address is. If it knows nobody, it writes to the address, and the room keeps the
invite under a token that whoever proves the address can take up.

Spec: C-S API §Third-party invites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from matrixcore.identifiers import RoomId
from services.gateway.dependencies import GatewayDeps
from services.gateway.identity_server import IdentityServer, key_validity_url
from services.gateway.room_access import require_joined
from services.gateway.room_changes import Session
from services.gateway.room_membership import invite_user
from services.gateway.threepid_addresses import EMAIL_MEDIUM, canonical_address, required_text
from tessera.commands import NewEvent
from tessera.http.errors import BadJson, InvalidParam, MatrixError
from tessera.storage.profiles import list_profiles
from tessera.storage.room_reads.state import list_state_keys

log = structlog.get_logger(__name__)

MAX_INVITES = 20  # of one createRoom
MAX_TOKEN_BYTES = 255

# What an identity server is told of the room, so that its mail can tell who is invited to what.
_ROOM_FIELDS = {
    ("m.room.name", ""): ("room_name", "name"),
    ("m.room.canonical_alias", ""): ("room_alias", "alias"),
    ("m.room.avatar", ""): ("room_avatar_url", "url"),
    ("m.room.join_rules", ""): ("room_join_rules", "join_rule"),
    ("m.room.create", ""): ("room_type", "type"),
}


@dataclass(frozen=True, slots=True)
class AddressInvite:
    """Whom to invite, and the identity server to ask."""

    medium: str
    address: str
    server: IdentityServer


def names_address(body: Mapping[str, Any]) -> bool:
    """Whether a request to invite names an address in place of a user."""
    return "user_id" not in body and any(name in body for name in ("medium", "address", "id_server"))


def parse_address_invite(gateway: GatewayDeps, body: Mapping[str, Any]) -> AddressInvite:
    """Raises MissingParam, BadJson or InvalidParam."""
    medium = required_text(body, "medium")
    if medium != EMAIL_MEDIUM:
        raise MatrixError("Only e-mail addresses can be invited", errcode="M_THREEPID_DENIED", status=403)
    address = canonical_address(medium, required_text(body, "address"))
    id_server, token = required_text(body, "id_server"), required_text(body, "id_access_token")
    return AddressInvite(medium, address, IdentityServer.named(gateway.calls.guarded, id_server, token))


def parse_address_invites(gateway: GatewayDeps, body: Mapping[str, Any]) -> list[AddressInvite]:
    """The `invite_3pid` of a createRoom. Raises MissingParam, BadJson or InvalidParam."""
    given = body.get("invite_3pid") or []
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        raise BadJson("invite_3pid must be a list of objects")
    if len(given) > MAX_INVITES:
        raise InvalidParam(f"invite_3pid has more than {MAX_INVITES} entries")
    return [parse_address_invite(gateway, one) for one in given]


async def invite_address(
    gateway: GatewayDeps, session: Session, room_id: RoomId, invite: AddressInvite, extra: Mapping[str, Any]
) -> None:
    """Invite the user whose the address is, or keep an invite for whoever proves it.

    Raises:
        MatrixError: the identity server refuses or does not answer (502); the room refuses.
        LimitExceeded
    """
    gateway.limits.check("rc_third_party_invite", session.user_id)
    async with gateway.shards.of_room(room_id).reading() as tx:
        await require_joined(tx, room_id, session.user_id)
    user_id = await invite.server.lookup(invite.medium, invite.address)
    if user_id is not None:
        gateway.limits.check("rc_invites.per_user", user_id)
        await invite_user(gateway.rooms, session, room_id, user_id, extra)
        return
    stored = await invite.server.store_invite(await _told(gateway, session, room_id, invite))
    token, content = _invite_content(stored, invite.server.name)
    await gateway.rooms.append(room_id, session, NewEvent("m.room.third_party_invite", token, content))


async def invite_addresses(
    gateway: GatewayDeps, session: Session, room_id: RoomId, invites: Sequence[AddressInvite]
) -> None:
    """The same for several addresses of a new room, which is there whether or not they can be invited."""
    for invite in invites:
        try:
            await invite_address(gateway, session, room_id, invite, {})
        except MatrixError as error:
            log.info("address not invited", room_id=room_id, errcode=error.errcode)


async def _told(gateway: GatewayDeps, session: Session, room_id: RoomId, invite: AddressInvite) -> dict[str, str]:
    """What the identity server is told."""
    async with gateway.shards.of_room(room_id).reading() as tx:
        state = await list_state_keys(tx, room_id, list(_ROOM_FIELDS))
    async with gateway.accounts.reading() as tx:
        profile = (await list_profiles(tx, [session.user_id])).get(session.user_id)
    told: dict[str, Any] = {
        "medium": invite.medium,
        "address": invite.address,
        "room_id": room_id,
        "sender": session.user_id,
        "sender_display_name": None if profile is None else profile.displayname,
        "sender_avatar_url": None if profile is None else profile.avatar_url,
    }
    for key, (name, field) in _ROOM_FIELDS.items():
        if key in state:
            told[name] = orjson.loads(state[key].pdu)["content"].get(field)
    return {name: value for name, value in told.items() if isinstance(value, str)}


def _invite_content(stored: Mapping[str, Any], server_name: str) -> tuple[str, dict[str, Any]]:
    """State key and content of the room's event. Raises MatrixError for an answer without them."""
    token, shown, keys = stored.get("token"), stored.get("display_name"), stored.get("public_keys")
    if not isinstance(keys, list) or not keys or not all(_is_key(key) for key in keys):
        keys = None
    if not isinstance(token, str) or not 0 < len(token.encode()) <= MAX_TOKEN_BYTES or keys is None:
        raise MatrixError("The identity server's answer makes no sense", errcode="M_UNKNOWN", status=502)
    public_keys = [
        {
            "public_key": key["public_key"],
            "key_validity_url": key.get("key_validity_url", key_validity_url(server_name)),
        }
        for key in keys
    ]
    return token, {
        "display_name": shown if isinstance(shown, str) else "",
        **public_keys[0],
        "public_keys": public_keys,
    }


def _is_key(key: object) -> bool:
    return (
        isinstance(key, Mapping)
        and isinstance(key.get("public_key"), str)
        and isinstance(key.get("key_validity_url", ""), str)
    )

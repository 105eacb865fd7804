"""Inviting users of other servers: the room's writer drafts, their server signs, the writer appends.

Spec: S-S API §Inviting to a room; DESIGN.md section 3 (draft, then append).
"""

from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from matrixcore.auth_events import CREATE
from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.commands import AppendPdu, Draft, NewEvent
from tessera.federation.errors import PeerError
from tessera.federation.handshakes import Handshaker, client_error, invite_there
from tessera.http.errors import Forbidden, MatrixError, NotFound
from tessera.room_changes import RoomChanges
from tessera.storage.resident_rooms import find_tips
from tessera.stripped_state import list_shown_state

log = structlog.get_logger(__name__)

MAX_DRAFTS = 2  # a room that went on meanwhile is drafted for once more


async def invite_elsewhere(
    changes: RoomChanges,
    shaker: Handshaker,
    sender: UserId,
    room_id: RoomId,
    target: UserId,
    content: Mapping[str, Any],
    *,
    sender_device: str | None = None,
) -> EventId:
    """Invite a user of another server.

    Raises:
        MatrixError: the room does not allow it, the user's server refuses (its refusal), or cannot be asked (502).
    """
    for attempt in range(MAX_DRAFTS):
        event, shown = await _draft(changes, shaker.server_name, sender, room_id, target, content)
        try:
            signed = await invite_there(shaker, event, shown)
        except PeerError as trouble:
            log.info("invite not taken", room_id=room_id, reason=str(trouble))
            raise client_error([trouble]) from trouble
        try:
            await changes.submit(room_id, sender, AppendPdu(signed.pdu, sender_device))
        except MatrixError as error:
            # What was allowed when it was drafted is not any more, or its place is gone.
            if error.status not in (400, 403) or attempt + 1 == MAX_DRAFTS:
                raise
            continue
        return signed.event_id
    raise AssertionError("the loop returns or raises")


async def _draft(
    changes: RoomChanges,
    server_name: ServerName,
    sender: UserId,
    room_id: RoomId,
    target: UserId,
    content: Mapping[str, Any],
) -> tuple[Event, list[dict[str, Any]]]:
    """The invite as this server signs it, and what the invitee may see of the room."""
    outcome = await changes.submit(room_id, sender, Draft(NewEvent("m.room.member", target, dict(content))))
    async with changes.shards.of_room(room_id).reading() as tx:
        tips = await find_tips(tx, room_id, server_name)
        shown = await list_shown_state(tx, room_id, also=("m.room.member", sender))
    if tips is None:
        raise NotFound("This server is not in the room")
    pdus = [orjson.loads(pdu) for pdu in shown]
    if any(pdu["type"] == CREATE[0] and pdu["content"].get("m.federate") is False for pdu in pdus):
        raise Forbidden("The room is for users of this server only")
    event = load_event(outcome.body, outcome.event_ids[0], ROOM_VERSIONS[tips.room_version], room_id=room_id)
    return event, pdus

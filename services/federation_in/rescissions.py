"""Invites of our users, and their knocks, that the other side ends: the only PDUs of rooms without us that count.

Spec: S-S API §Leaving Rooms (Rejecting Invites); DESIGN.md section 6.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import orjson
import structlog

from matrixcore.event_hashes import check_content_hash
from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.member_events import changes_of
from tessera.commands import NoteMembership
from tessera.http.errors import MatrixError
from tessera.storage import user_rooms
from tessera.storage.user_rooms import UserRoom

log = structlog.get_logger(__name__)

_ENDS = ("leave", "ban")


class InviteEnds:
    """Tells our users of invites and knocks that have come to an end.

    What is taken is signed by its sender's server and cites the stored invite or knock as its permission: so its
    sender knew of that, and who may know of it is the room's matter.
    """

    def __init__(self, deps: FederationInDeps) -> None:
        self._deps = deps

    async def take_back(self, origin: ServerName, pdus: Sequence[Mapping[str, Any]]) -> None:
        """End what these PDUs end; everything else is dropped."""
        for pdu in pdus:
            if (user_id := self._concerned(pdu)) is not None:
                try:
                    await self._take_back(pdu, RoomId(str(pdu.get("room_id"))), user_id)
                except MatrixError as error:
                    log.info("invite not taken back", origin=origin, reason=error.message)

    def _concerned(self, pdu: Mapping[str, Any]) -> UserId | None:
        """Our user of whom a PDU says that the invite or knock has ended."""
        content = pdu.get("content")
        if pdu.get("type") != "m.room.member" or not isinstance(content, Mapping):
            return None
        if content.get("membership") not in _ENDS:
            return None
        try:
            user_id = parse_user_id(pdu.get("state_key"))
        except InvalidIdentifier:
            return None
        return user_id if server_of(user_id) == self._deps.server_name else None

    async def _take_back(self, pdu: Mapping[str, Any], room_id: RoomId, user_id: UserId) -> None:
        async with self._deps.accounts.reading() as tx:
            row = await user_rooms.find_room(tx, user_id, room_id)
        if row is None or row.membership not in ("invite", "knock"):
            return
        event = await self._verified(pdu, row)
        if event is None or event.room_id != room_id or row.event_id not in event.auth_events:
            return
        note = NoteMembership(user_id, event.membership or "leave", event.event_id, event.sender)
        command_id = sha256(f"rescission {room_id} {event.event_id}".encode()).digest()
        await changes_of(self._deps).submit(room_id, event.sender, note, command_id=command_id)

    async def _verified(self, pdu: Mapping[str, Any], row: UserRoom) -> Event | None:
        try:
            event = parse_event(pdu, rules_of(row))
        except InvalidEvent:
            return None
        if not check_content_hash(event.fields, event.rules):
            return None
        (wrong,) = await self._deps.federation.keyring.verify_events([event], event.rules)
        return event if wrong is None else None


def rules_of(row: UserRoom) -> RoomVersionRules:
    """The rules of the room, as its create event in the stored stripped state has them."""
    for event in orjson.loads(row.stripped_state or b"[]"):
        if event.get("type") == "m.room.create":
            version = event["content"].get("room_version", "1")
            return ROOM_VERSIONS.get(version, ROOM_VERSIONS["1"]) if isinstance(version, str) else ROOM_VERSIONS["1"]
    return ROOM_VERSIONS["1"]

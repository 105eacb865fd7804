"""Making a room: the alias held, the create event built and signed, one command, then alias and directory.

Spec: C-S API §Creation; DESIGN.md section 3 (createRoom is one compound command).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from matrixcore.event_building import build_event
from matrixcore.events import Event, InvalidEvent
from matrixcore.identifiers import EventId, RoomAlias, RoomId, ServerName, UserId, server_of
from matrixcore.room_versions import EventIdFormat, RoomVersionRules
from matrixcore.signing import SigningKey
from services.gateway.directory_rules import DirectoryRules
from services.gateway.member_profiles import load_invitees
from services.gateway.new_room import NewRoom, create_content, first_events
from services.gateway.room_changes import RoomChanges, Session
from services.gateway.room_directory import publish_room
from tessera.commands import CreateRoom, NewEvent
from tessera.http.errors import MatrixError
from tessera.storage import aliases

log = structlog.get_logger(__name__)

RESERVATION_MS = 60_000  # more than a createRoom can take
MAX_ATTEMPTS = 6
ROOM_LOCALPART_LETTERS = 18
EVENT_LOCALPART_LETTERS = 18


@dataclass(frozen=True, slots=True)
class RoomMaker:
    """What making rooms needs beside changing them."""

    changes: RoomChanges
    server_name: ServerName
    signing_key: SigningKey
    rules: DirectoryRules = field(default_factory=DirectoryRules)

    async def create(self, session: Session, room: NewRoom) -> RoomId:
        """Make the room, all of it or none, and answer its ID.

        Raises:
            InvalidRoomRequest: the creation content is none.
            MatrixError: the alias is taken (400 M_ROOM_IN_USE), the state does not hold together (400
                M_INVALID_ROOM_STATE), an invitee cannot be invited, the operator's rules forbid alias or directory.
        """
        content = create_content(room)
        elsewhere = [invitee for invitee in room.invitees if server_of(invitee) != self.server_name]
        if elsewhere and self.changes.others is None:
            raise MatrixError(f"The server of {elsewhere[0]} cannot be reached", errcode="M_NOT_FOUND", status=404)
        if self.changes.bridges is not None:
            await self.changes.bridges.make_users(room.invitees)
        profiles = await load_invitees(self.changes.accounts, room.invitees, also=room.creator)
        # Others' servers sign their invites before these are events: they follow when the room is there.
        events = first_events(room, profiles, later=elsewhere)
        if room.alias is not None:
            await self._reserve(room.alias, room.creator)
        try:
            room_id = await self._commit(session, room, content, events)
        except BaseException:
            if room.alias is not None:
                await self._release(room.alias, room.creator)
            raise
        if room.alias is not None:
            async with self.changes.accounts.transaction() as tx:
                await aliases.bind(tx, room.alias, room.creator, room_id)
        if room.is_public:
            await publish_room(self.changes, room_id, published=True)
        await self._invite_elsewhere(session, room, room_id, elsewhere)
        return room_id

    async def _invite_elsewhere(
        self, session: Session, room: NewRoom, room_id: RoomId, invitees: Sequence[UserId]
    ) -> None:
        """Invite users of other servers, side by side; the room is there, whoever cannot be invited."""
        content = {"membership": "invite", **({"is_direct": True} if room.is_direct else {})}
        others = self.changes.others

        async def invite(invitee: UserId) -> None:
            assert others is not None
            try:
                await others.invite(session, room_id, invitee, content)
            except MatrixError as error:
                log.info("not invited to a new room", room_id=room_id, user_id=invitee, reason=error.message)

        await asyncio.gather(*(invite(invitee) for invitee in invitees))

    async def _commit(
        self, session: Session, room: NewRoom, content: dict[str, object], events: tuple[NewEvent, ...]
    ) -> RoomId:
        shift_ms = 0
        for attempt in range(MAX_ATTEMPTS):
            create = self.build_create_event(room.creator, room.rules, content, self.changes.clock.now_ms() + shift_ms)
            if room.alias is not None:
                self.rules.check_alias(room.creator, create.room_id, room.alias)
            if room.is_public:
                names = () if room.alias is None else (room.alias,)
                self.rules.check_publication(room.creator, create.room_id, names)
            body = CreateRoom(room.rules.version, create.pdu, events, session.device_id)
            try:
                await self.changes.submit(create.room_id, room.creator, body)
            except MatrixError as error:
                if error.errcode == "M_ROOM_IN_USE" and attempt + 1 < MAX_ATTEMPTS:
                    shift_ms = self._later(attempt)
                    continue
                if error.errcode == "M_FORBIDDEN":
                    raise MatrixError(error.message, errcode="M_INVALID_ROOM_STATE", status=400) from error
                raise
            return create.room_id
        raise AssertionError("the loop returns or raises")

    def _later(self, attempt: int) -> int:
        """By how many milliseconds to date a room later: its ID was a hash that another room of this user has.

        That is one of the same content and the same millisecond. A client that makes many at once collides with
        itself again and again unless each of them goes some random way, which grows: at most 4, 16, ..., 1,024 ms.
        """
        return 1 + int.from_bytes(self.changes.ids.random_bytes(2), "big") % (4 << 2 * attempt)

    def build_create_event(
        self, creator: UserId, rules: RoomVersionRules, content: dict[str, object], now_ms: int
    ) -> Event:
        """The signed m.room.create of a new room, whose ID it gives or is.

        Raises:
            MatrixError: the content is too large (413) or none (400).
        """
        ids = self.changes.ids
        room_id = event_id = None
        if not rules.room_id_is_create_event_id:
            room_id = RoomId(f"!{ids.letters(ROOM_LOCALPART_LETTERS)}:{self.server_name}")
        if rules.event_id_format is EventIdFormat.GIVEN:
            event_id = EventId(f"${ids.letters(EVENT_LOCALPART_LETTERS)}:{self.server_name}")
        try:
            return build_event(
                rules=rules,
                room_id=room_id,
                sender=creator,
                event_type="m.room.create",
                state_key="",
                content=content,
                origin_server_ts=now_ms,
                depth=1,
                prev_events=(),
                auth_events=(),
                server_name=self.server_name,
                signing_key=self.signing_key,
                event_id=event_id,
                reference_hashes={},
            )
        except InvalidEvent as error:
            too_large = error.too_large
            raise MatrixError(
                error.reason, errcode="M_TOO_LARGE" if too_large else "M_BAD_JSON", status=413 if too_large else 400
            ) from error

    async def _reserve(self, alias: RoomAlias, creator: UserId) -> None:
        now_ms = self.changes.clock.now_ms()
        async with self.changes.accounts.transaction() as tx:
            held = await aliases.reserve(tx, alias, creator, until_ts=now_ms + RESERVATION_MS, now_ms=now_ms)
        if not held:
            raise MatrixError("The room alias is taken", errcode="M_ROOM_IN_USE", status=400)

    async def _release(self, alias: RoomAlias, creator: UserId) -> None:
        try:
            async with self.changes.accounts.transaction() as tx:
                await aliases.release(tx, alias, creator)
        except Exception:  # the reservation lapses by itself
            log.warning("alias not released", exc_info=True)

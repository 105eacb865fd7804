"""Rooms in which this server has nobody: our users enter, leave and knock on them by other servers.

Spec: C-S API §Joining rooms, §Leaving rooms, §Knocking on rooms; S-S API §Joining Rooms and its neighbours.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from matrixcore.events import Event, load_event
from matrixcore.identifiers import (
    EventId,
    InvalidIdentifier,
    RoomAlias,
    RoomId,
    ServerName,
    UserId,
    parse_room_id,
    parse_server_name,
    server_of,
)
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.room_changes import RoomChanges, Session
from tessera.commands import AppendPdu, Draft, NewEvent, NoteMembership
from tessera.federation.errors import PeerError, PeerRefused
from tessera.federation.handshakes import Handshaker, client_error, have_join_signed, knock_there, leave_there
from tessera.federation.inviting import invite_elsewhere
from tessera.federation.joining import JoinUnderWay, RoomJoiner
from tessera.http.errors import Forbidden, MatrixError, NotFound
from tessera.http.limits import RateLimits
from tessera.storage import joins, user_rooms
from tessera.storage.resident_rooms import find_tips, list_joined_servers
from tessera.storage.user_rooms import UserRoom

log = structlog.get_logger(__name__)

MAX_VIA = 20
MAX_SERVERS_ASKED = 5  # for a leave or a knock
LEAVE_SECONDS = 20.0  # then the user is out, whatever the others say
JOIN_WAIT_SECONDS = 150.0  # for somebody else's join of the same room
LOOK_SECONDS = 0.25
MAX_ALIAS_SERVERS = 50
LOCAL_EVENT_LETTERS = 43


@dataclass(frozen=True, slots=True)
class ElsewhereAlias:
    """Where another server's alias leads."""

    room_id: RoomId
    servers: tuple[ServerName, ...]


@dataclass(frozen=True, slots=True)
class RoomsElsewhere:
    """What the gateway does by other servers.

    Attributes:
        limits: of joins; None where nobody counts them.
    """

    changes: RoomChanges
    shaker: Handshaker
    joiner: RoomJoiner
    limits: RateLimits | None = None

    async def join(
        self, session: Session, room_id: RoomId, via: Sequence[ServerName], content: Mapping[str, Any]
    ) -> str | None:
        """Join a room that this server does not follow.

        Returns:
            The ID of the join; None if this server follows the room by now, as somebody else has joined it.

        Raises:
            MatrixError
        """
        servers = await self.servers_of(session.user_id, room_id, via)
        if not servers:
            raise NotFound("This room is not known here, and no server was named that knows it")
        if self.limits is not None:
            self.limits.check("rc_joins.remote", session.user_id)
        try:
            return await self.joiner.join(session.user_id, room_id, servers, content)
        except JoinUnderWay:
            await self._wait_for_others(room_id)
            return None

    async def join_vouched_for(
        self, session: Session, room_id: RoomId, authorisers: Sequence[UserId], content: Mapping[str, Any]
    ) -> EventId:
        """Join a restricted room that this server follows, where only users of other servers can vouch for it.

        Raises:
            MatrixError: none of their servers does.
        """
        troubles: list[PeerError] = []
        by_server = {server_of(user_id): user_id for user_id in reversed(authorisers)}
        for authoriser in list(by_server.values())[:MAX_SERVERS_ASKED]:
            vouched = {**content, "join_authorised_via_users_server": authoriser}
            new = NewEvent("m.room.member", session.user_id, vouched)
            outcome = await self.changes.submit(room_id, session.user_id, Draft(new))
            async with self.changes.shards.of_room(room_id).reading() as tx:
                tips = await find_tips(tx, room_id, self.shaker.server_name)
            if tips is None:
                raise NotFound("This room is not known here")
            rules = ROOM_VERSIONS[tips.room_version]
            event = load_event(outcome.body, outcome.event_ids[0], rules, room_id=room_id)
            try:
                signed = await have_join_signed(self.shaker, server_of(authoriser), event)
            except PeerError as trouble:
                log.info("join not vouched for", room_id=room_id, reason=str(trouble))
                troubles.append(trouble)
                continue
            await self.changes.submit(room_id, session.user_id, AppendPdu(signed.pdu, session.device_id))
            return signed.event_id
        raise client_error(troubles)

    async def knock(
        self, session: Session, room_id: RoomId, via: Sequence[ServerName], content: Mapping[str, Any]
    ) -> EventId:
        """Knock on a room that this server does not follow. Raises MatrixError."""
        user_id, troubles = session.user_id, list[PeerError]()
        servers = await self.servers_of(user_id, room_id, via)
        if not servers:
            raise NotFound("This room is not known here, and no server was named that knows it")
        for server in servers[:MAX_SERVERS_ASKED]:
            now_ms = self.changes.clock.now_ms()
            try:
                event, shown = await knock_there(self.shaker, server, room_id, user_id, content, now_ms)
            except PeerError as trouble:
                log.info("not knocked", room_id=room_id, server=server, reason=str(trouble))
                troubles.append(trouble)
                continue
            await self._note(event, orjson.dumps([*shown, _stripped(event)]))
            return event.event_id
        raise client_error(troubles)

    async def leave(self, user_id: UserId, room_id: RoomId, content: Mapping[str, Any]) -> str | None:
        """Reject an invite or take back a knock; the user is out even if no server can be told.

        Returns:
            The ID of the leave; None if there was nothing to leave any more.

        Raises:
            Forbidden: the user never was there.
        """
        row = await self._find_row(user_id, room_id)
        if row is None:
            raise Forbidden("You are not in this room")
        if row.membership not in ("invite", "knock", "join"):
            return None
        event_id = await self._leave_there(user_id, room_id, content)
        if event_id is None:
            event_id = EventId("$" + self.changes.ids.letters(LOCAL_EVENT_LETTERS))
        note = NoteMembership(user_id, "leave", event_id, user_id)
        await self.changes.submit(room_id, user_id, note)
        return event_id

    async def invite(self, session: Session, room_id: RoomId, target: UserId, content: Mapping[str, Any]) -> EventId:
        """Invite a user of another server. Raises MatrixError."""
        return await invite_elsewhere(
            self.changes, self.shaker, session.user_id, room_id, target, content, sender_device=session.device_id
        )

    async def find_alias(self, alias: RoomAlias) -> ElsewhereAlias:
        """Ask an alias's server where it leads.

        Raises:
            NotFound: nowhere, or the server cannot be asked.
        """
        path = "/_matrix/federation/v1/query/directory"
        try:
            answer = await self.shaker.client.get(server_of(alias), path, {"room_alias": alias}, timeout_s=15.0)
            room_id = parse_room_id(answer.get("room_id"))
        except PeerRefused as refused:
            log.info("alias not resolved", server=server_of(alias), reason=str(refused))
            raise NotFound(f"Room alias {alias} not found") from refused
        except (PeerError, InvalidIdentifier) as trouble:
            log.info("alias not resolved", server=server_of(alias), reason=str(trouble))
            raise NotFound(f"Room alias {alias} not found: its server cannot be asked") from trouble
        named = answer.get("servers")
        servers = parse_servers(named if isinstance(named, list) else [], MAX_ALIAS_SERVERS)
        return ElsewhereAlias(room_id, tuple(servers or [server_of(alias)]))

    async def _leave_there(self, user_id: UserId, room_id: RoomId, content: Mapping[str, Any]) -> EventId | None:
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                for server in (await self.servers_of(user_id, room_id, ()))[:MAX_SERVERS_ASKED]:
                    now_ms = self.changes.clock.now_ms()
                    try:
                        event = await leave_there(self.shaker, server, room_id, user_id, content, now_ms)
                    except PeerError as trouble:
                        log.info("not left there", room_id=room_id, server=server, reason=str(trouble))
                    else:
                        return event.event_id
        except TimeoutError:
            log.info("not left there in time", room_id=room_id)
        return None

    async def _note(self, event: Event, stripped_state: bytes) -> None:
        """Tell the user of the membership, unless this server follows the room by now."""
        membership = event.membership or "leave"
        note = NoteMembership(event.sender, membership, event.event_id, event.sender, stripped_state)
        try:
            await self.changes.submit(event.room_id, event.sender, note)
        except MatrixError as error:
            if error.errcode != "M_BAD_STATE":
                raise

    async def servers_of(self, user_id: UserId, room_id: RoomId, via: Sequence[ServerName]) -> list[ServerName]:
        """Who may know a room: those that were named, those of an invite's or a knock's stripped state with the
        inviter's first, the room ID's, those that once were in it.
        """
        row = await self._find_row(user_id, room_id)
        servers = dict.fromkeys(via[:MAX_VIA])
        if row is not None and row.membership in ("invite", "knock"):
            servers |= dict.fromkeys([server_of(row.sender), *_servers_shown(row)])
        if ":" in room_id:
            servers[server_of(room_id)] = None
        async with self.changes.shards.of_room(room_id).reading() as tx:
            servers |= dict.fromkeys((await list_joined_servers(tx, room_id))[:MAX_VIA])
        return [server for server in servers if server != self.shaker.server_name]

    async def _find_row(self, user_id: UserId, room_id: RoomId) -> UserRoom | None:
        async with self.changes.accounts.reading() as tx:
            return await user_rooms.find_room(tx, user_id, room_id)

    async def _wait_for_others(self, room_id: RoomId) -> None:
        """Wait until nobody else is about to join the room."""
        clock = self.changes.clock
        until = clock.monotonic() + JOIN_WAIT_SECONDS
        while clock.monotonic() < until:
            async with self.changes.shards.of_room(room_id).reading() as tx:
                if not await joins.list_joining(tx, [room_id]):
                    return
            await clock.sleep(LOOK_SECONDS)
        raise MatrixError("The room is being joined, which takes its time", errcode="M_UNKNOWN", status=504)


def parse_servers(names: Sequence[object], limit: int = MAX_VIA) -> list[ServerName]:
    """Those of the names that are server names."""
    servers: list[ServerName] = []
    for name in names[:limit]:
        try:
            servers.append(parse_server_name(name))
        except InvalidIdentifier:
            continue
    return servers


def _servers_shown(row: UserRoom) -> list[ServerName]:
    """The servers of who made the state that an invite or a knock shows."""
    senders = [event.get("sender") for event in orjson.loads(row.stripped_state or b"[]")]
    return parse_servers([sender.partition(":")[2] for sender in senders if isinstance(sender, str)])


def _stripped(event: Event) -> dict[str, Any]:
    return {"content": event.content, "sender": event.sender, "state_key": event.state_key, "type": event.type}

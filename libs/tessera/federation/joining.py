"""Joining rooms that live on other servers.

Several servers are asked in turn. The signed join is stored before a server hears of it, and the answer is staged in
the room's shard; the room's writer takes it in with one command. Whatever is left half done by a process that ended is
gone on with by another one.

Spec: S-S API §Joining Rooms; DESIGN.md section 6.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import structlog

from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.commands import EnterRoom, ReceivePdus
from tessera.federation.client import endpoint
from tessera.federation.errors import PeerAnsweredBadly, PeerError
from tessera.federation.handshakes import Handshaker, ask_template, client_error, finish_template, with_signatures_of
from tessera.federation.join_staging import stage_answer
from tessera.http.errors import MatrixError
from tessera.room_changes import RoomChanges
from tessera.storage import joins
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.joins import Join
from tessera.storage.partitions import PartitionMoved

log = structlog.get_logger(__name__)

MAX_SERVERS = 10  # that are asked for one join
CLAIM_SECONDS = 20.0
RENEW_SECONDS = 5.0
RESUME_SECONDS = 10.0
RESUMED_AT_ONCE = 4
ANSWER_SECONDS = 600.0  # a large room's state takes its server some minutes
MAX_ANSWER_BYTES = 1 << 30
MAX_WAITING_PDUS = 500

T = TypeVar("T")


class JoinUnderWay(Exception):
    """Somebody here joins the room already, or just has: look again."""


@dataclass(frozen=True, slots=True)
class RoomJoiner:
    """Joins rooms on other servers.

    Attributes:
        claimant: of this process, different after each start.
    """

    changes: RoomChanges
    shaker: Handshaker
    claimant: str

    async def join(
        self, user_id: UserId, room_id: RoomId, servers: Sequence[ServerName], content: Mapping[str, Any]
    ) -> EventId:
        """Join a user to a room that this server does not follow.

        Args:
            servers: who may know the room, the likeliest first.
            content: of the member event.

        Raises:
            JoinUnderWay
            MatrixError: no server lets the user in (its refusal), or none can be asked (502).
        """
        troubles: list[PeerError] = []
        for number, server in enumerate(servers[:MAX_SERVERS]):
            try:
                template = await ask_template(self.shaker, server, "join", room_id, user_id)
                event = finish_template(self.shaker, template, content, self.changes.clock.now_ms())
                join = await self._begin(event, [server, *servers[number + 1 : MAX_SERVERS]])
            except PeerError as trouble:
                log.info("not joined", room_id=room_id, server=server, reason=str(trouble))
                troubles.append(trouble)
                continue
            try:
                return await self._held(join, self._carry_out(join, [server]))
            except PeerError as trouble:
                troubles.append(trouble)
                await self._give_up(join, str(trouble))
        raise client_error(troubles)

    async def resume(self) -> None:
        """Run for ever: go on with joins whose process has ended."""
        while True:
            await self.changes.clock.sleep(RESUME_SECONDS)
            for name, database in self.changes.shards.databases.items():
                try:
                    async with database.reading() as tx:
                        await joins.sweep(tx)
                        abandoned = await joins.claim_abandoned(tx, self.claimant, CLAIM_SECONDS, RESUMED_AT_ONCE)
                    await asyncio.gather(*(self.go_on(join) for join in abandoned))
                except (DatabaseUnavailable, OSError, TimeoutError) as error:
                    log.warning("joins not looked at", shard=name, error=str(error) or type(error).__name__)

    async def go_on(self, join: Join) -> None:
        """Bring a join that was left half done to its end, whichever it is."""
        log.info("going on with a join", room_id=join.room_id, state=join.state)
        try:
            await self._held(join, self._carry_out(join, join.servers))
        except (PeerError, JoinUnderWay) as trouble:
            await self._give_up(join, str(trouble))
        except MatrixError as error:
            if error.status != 503:
                await self._give_up(join, error.message)

    async def _begin(self, event: Event, servers: list[ServerName]) -> Join:
        partition = self.changes.shards.partition_of(event.room_id)
        join = Join(
            self.changes.ids.token(),
            partition,
            event.room_id,
            event.sender,
            event.rules.version,
            event.event_id,
            event.pdu,
            servers,
            "sending",
        )
        try:
            async with self.changes.shards.of_partition(partition).reading() as tx:
                if not await joins.add(tx, join, self.claimant, CLAIM_SECONDS):
                    raise JoinUnderWay
        except PartitionMoved as error:
            raise MatrixError("The room is being moved", status=503, errcode="M_UNKNOWN") from error
        return join

    async def _carry_out(self, join: Join, servers: Sequence[ServerName]) -> EventId:
        if join.state == "sending":
            await self._stage(join, servers)
        command_id = sha256(f"enter {join.join_id}".encode()).digest()
        try:
            await self.changes.submit(join.room_id, join.user_id, EnterRoom(join.join_id), command_id=command_id)
        except MatrixError as error:
            if error.status == 503:
                raise  # it stays staged, and is tried again
            await self._give_up(join, error.message)
            if error.errcode == "M_BAD_STATE":
                raise JoinUnderWay from error
            raise
        await self._name_waiting(join)
        return join.event_id

    async def _stage(self, join: Join, servers: Sequence[ServerName]) -> None:
        """Send the join to one of the servers and stage its answer.

        Raises:
            PeerError: that of the last server.
        """
        trouble: PeerError = PeerAnsweredBadly("there is nobody to be asked")
        for server in servers:
            try:
                await self._send(join, server)
            except PeerError as error:
                log.info("join not taken", room_id=join.room_id, server=server, reason=str(error))
                trouble = error
            else:
                return
        raise trouble

    async def _send(self, join: Join, server: ServerName) -> None:
        database = self.changes.shards.of_partition(join.partition)
        path = endpoint("/_matrix/federation/v2/send_join/{}/{}", join.room_id, join.event_id)
        query = {"omit_members": "false"}
        async with self.shaker.client.stream_put(
            server, path, join.pdu, query, timeout_s=ANSWER_SECONDS, max_bytes=MAX_ANSWER_BYTES
        ) as answer:
            signed = await stage_answer(database, self.shaker.keyring, join, answer.chunks())
        event = load_event(join.pdu, join.event_id, ROOM_VERSIONS[join.room_version], room_id=join.room_id)
        finished = await self._authorised(event, signed)
        async with database.reading() as tx:
            if finished.pdu != join.pdu:
                await joins.set_pdu(tx, join.join_id, finished.pdu)
            await joins.set_staged(tx, join.join_id)

    async def _authorised(self, event: Event, signed: Event | None) -> Event:
        """The join with the signature of the server of whoever has authorised it, if anybody had to.

        Raises:
            PeerAnsweredBadly: that server has not signed.
        """
        try:
            authoriser = parse_user_id(event.content.get("join_authorised_via_users_server"))
        except InvalidIdentifier:
            return event
        server = server_of(authoriser)
        signatures = {} if signed is None else signed.fields.get("signatures")
        theirs = signatures.get(server) if isinstance(signatures, Mapping) else None
        if not isinstance(theirs, Mapping):
            raise PeerAnsweredBadly(f"the join is not signed by {server}")
        event = with_signatures_of(event, server, theirs)
        (wrong,) = await self.shaker.keyring.verify_events([event], event.rules)
        if wrong is not None:
            raise PeerAnsweredBadly(f"the join is not signed by {server}: {wrong}")
        return event

    async def _name_waiting(self, join: Join) -> None:
        """Have the writer take in what came for the room meanwhile; what is left out is named again by others."""
        async with self.changes.shards.of_partition(join.partition).reading() as tx:
            waiting = await joins.list_waiting_pdus(tx, join.room_id, MAX_WAITING_PDUS)
        if waiting:
            try:
                await self.changes.submit(join.room_id, join.user_id, ReceivePdus(tuple(waiting)))
            except MatrixError as error:
                log.info("PDUs that came during a join wait on", room_id=join.room_id, reason=error.message)

    async def _give_up(self, join: Join, reason: str) -> None:
        async with self.changes.shards.of_partition(join.partition).reading() as tx:
            await joins.fail(tx, join.join_id, reason)

    async def _held(self, join: Join, work: Coroutine[Any, Any, T]) -> T:
        """Do some work on a join, which is nobody else's meanwhile."""
        renewing = asyncio.create_task(self._renew(join))
        try:
            return await work
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, join: Join) -> None:
        while True:
            await self.changes.clock.sleep(RENEW_SECONDS)
            try:
                async with self.changes.shards.of_partition(join.partition).reading() as tx:
                    if not await joins.renew(tx, join.join_id, self.claimant, CLAIM_SECONDS):
                        return
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                log.warning("join not renewed", room_id=join.room_id, error=str(error) or type(error).__name__)


def candidates(*groups: Sequence[str], own: ServerName) -> list[ServerName]:
    """Servers to be asked, without doubles and ourselves, in order."""
    return [ServerName(name) for name in dict.fromkeys(name for group in groups for name in group) if name != own]

"""How services change a room: a command to its writer, the outcome, and what follows before the answer.

Spec: none; DESIGN.md sections 2, 3 and 5.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from matrixcore.identifiers import EventId, RoomAlias, RoomId, ServerName, UserId
from tessera.clock import Clock
from tessera.commands import (
    NEEDS_POLICY_SIGNATURE,
    Append,
    AppendPdu,
    Command,
    CommandBody,
    Draft,
    NewEvent,
    Outcome,
    OutcomeStatus,
    transaction_command_id,
)
from tessera.fanout import Fanout
from tessera.http.authentication import Requester
from tessera.http.errors import Forbidden, MatrixError, Unavailable
from tessera.ids import IdSource
from tessera.memberships import changes_of_outcome, project_memberships
from tessera.records import Receipt
from tessera.room_commands import CommandUnanswered, RoomCommands
from tessera.storage.appservice_queue import NewEphemeral
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

COMMAND_ID_BYTES = 32
# Longer than a partition takes to find its next writer (about 4 s), shorter than clients wait.
COMMAND_TIMEOUT_SECONDS = 20.0
MAX_DRAFTS = 2


class RoomUnavailable(Unavailable):
    """The change did not happen and will not: the room's writer did not answer in time (503)."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__("The room cannot be changed at the moment", retry_after_ms=retry_after_ms)


@dataclass(frozen=True, slots=True)
class Session:
    """Whoever changes a room: the user, and the device whose own events carry the transaction ID.

    Attributes:
        sent_ms: the origin_server_ts of what is sent, where an application service gives one.
    """

    user_id: UserId
    device_id: str | None = None
    sent_ms: int | None = None


def session_of(requester: Requester) -> Session:
    """The session of a request."""
    return Session(requester.user_id, requester.device_id or None)


class OtherServers(Protocol):
    """What is done by other servers, for rooms in which this server has nobody and users that are not ours."""

    async def join(
        self, session: Session, room_id: RoomId, via: Sequence[ServerName], content: Mapping[str, Any]
    ) -> str | None:
        """Join a room; None if this server follows it by now."""

    async def join_vouched_for(
        self, session: Session, room_id: RoomId, authorisers: Sequence[UserId], content: Mapping[str, Any]
    ) -> EventId:
        """Join a room that this server follows, by a server whose user can vouch for the join."""

    async def knock(
        self, session: Session, room_id: RoomId, via: Sequence[ServerName], content: Mapping[str, Any]
    ) -> EventId:
        """Knock on a room."""

    async def leave(self, user_id: UserId, room_id: RoomId, content: Mapping[str, Any]) -> str | None:
        """Reject an invite or take a knock back; None if there is nothing to leave."""

    async def invite(self, session: Session, room_id: RoomId, target: UserId, content: Mapping[str, Any]) -> EventId:
        """Invite a user of another server."""


class PolicySigner(Protocol):
    """Has events signed by the policy servers of their rooms."""

    async def sign(self, room_id: RoomId, pdu: bytes) -> bytes:
        """The PDU with the signature; as it is where none is needed any more. Raises MatrixError."""


class NamesOnDemand(Protocol):
    """Application services: what they make when they are asked for it, and what is theirs alone."""

    async def make_alias(self, alias: RoomAlias) -> bool:
        """Let an alias lead somewhere that leads nowhere yet; whether it does now."""

    def private_receipts(self, receipts: Sequence[tuple[RoomId, Receipt]]) -> list[NewEphemeral]:
        """What services are to be told of private receipts: of users in their namespaces alone."""

    def check_alias(self, alias: RoomAlias, service_id: str | None) -> None:
        """Raise Exclusive unless an application service, or with None a person, may make and delete the alias."""

    async def make_users(self, user_ids: Iterable[UserId]) -> None:
        """Let those of the users be made that are unknown."""


@dataclass(frozen=True, slots=True)
class RoomChanges:
    """The way to the room writers and to the account store, which hears of moved memberships.

    Attributes:
        others: None where this server is the only one.
        bridges: None where there are no application services.
        policy: None where other servers cannot be asked: then rooms with a policy server cannot be changed.
    """

    commands: RoomCommands
    shards: RoomShards
    accounts: Database
    fanout: Fanout
    clock: Clock
    ids: IdSource
    timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    others: OtherServers | None = None
    bridges: NamesOnDemand | None = None
    policy: PolicySigner | None = None

    async def submit(
        self,
        room_id: RoomId,
        sender: UserId,
        body: CommandBody,
        *,
        command_id: bytes | None = None,
        sent_ms: int | None = None,
    ) -> Outcome:
        """Have a change made and answer its outcome, once the users' room lists know of it.

        In a room with a policy server the event is signed there first.

        Args:
            command_id: of a request that a client may repeat; None for one that is always new.
            sent_ms: the time of the event; None for now.

        Raises:
            MatrixError: the writer refused it, or the policy server did.
            RoomUnavailable: it will not happen.
        """
        command_id = command_id or self.ids.random_bytes(COMMAND_ID_BYTES)
        try:
            return await self._submit(room_id, sender, body, command_id, sent_ms)
        except MatrixError as refusal:
            if refusal.errcode != NEEDS_POLICY_SIGNATURE or not isinstance(body, Append | AppendPdu):
                raise
        return await self._submit_signed(room_id, sender, body, command_id, sent_ms)

    async def _submit_signed(
        self, room_id: RoomId, sender: UserId, body: Append | AppendPdu, command_id: bytes, sent_ms: int | None
    ) -> Outcome:
        """Have the event drafted, signed and appended; a draft that the room has left behind is made once more."""
        if self.policy is None:
            raise Forbidden("The room's policy server cannot be asked from here")
        is_draft = isinstance(body, Append)
        for attempt in range(MAX_DRAFTS if is_draft else 1):
            if isinstance(body, Append):
                drafted = await self._submit(
                    room_id, sender, Draft(body.event), self.ids.random_bytes(COMMAND_ID_BYTES), sent_ms
                )
                pdu = drafted.body
            else:
                pdu = body.pdu
            signed = AppendPdu(await self.policy.sign(room_id, pdu), body.sender_device, body.txn_id)
            # A client that repeats its request is answered what came of the first: the id derives from the request's.
            derived = sha256(command_id + b"signed" + bytes((attempt,))).digest()
            try:
                return await self._submit(room_id, sender, signed, derived)
            except MatrixError as error:
                is_stale = error.status in (400, 403) and attempt + 1 < MAX_DRAFTS and is_draft
                if not is_stale and error.errcode == NEEDS_POLICY_SIGNATURE:
                    raise Forbidden("The room's policy server has not signed the event") from error
                if not is_stale:
                    raise
        raise AssertionError("the loop returns or raises")

    async def _submit(
        self, room_id: RoomId, sender: UserId, body: CommandBody, command_id: bytes, sent_ms: int | None = None
    ) -> Outcome:
        command = Command(
            command_id,
            room_id,
            self.shards.partition_of(room_id),
            sender,
            self.clock.now_ms() if sent_ms is None else sent_ms,
            body,
        )
        try:
            outcome = await self.commands.submit(command, timeout_seconds=self.timeout_seconds)
        except CommandUnanswered as unanswered:
            raise RoomUnavailable(unanswered.retry_after_ms) from unanswered
        if outcome.status is OutcomeStatus.REFUSED:
            raise MatrixError(outcome.error, errcode=outcome.errcode, status=outcome.http_status)
        if outcome.memberships:
            await project_memberships(self.accounts, self.fanout, changes_of_outcome(outcome, room_id))
        return outcome

    async def append(
        self,
        room_id: RoomId,
        session: Session,
        event: NewEvent,
        *,
        path: str | None = None,
        txn_id: str | None = None,
        expect_membership: tuple[str, ...] = (),
        done_if_membership: tuple[str, ...] = (),
    ) -> EventId | None:
        """Append one event and answer its ID; None where the room was already as wanted (`done_if_membership`).

        Args:
            path: of a PUT that the client may repeat, with `txn_id`: its part after the version.
        """
        command_id = None
        if path is not None:
            command_id = transaction_command_id(session.user_id, session.device_id, "PUT", path)
        body = Append(event, session.device_id, txn_id, expect_membership, done_if_membership)
        outcome = await self.submit(room_id, session.user_id, body, command_id=command_id, sent_ms=session.sent_ms)
        return outcome.event_ids[0] if outcome.event_ids else None


def new_redaction(content: dict[str, Any], target: EventId) -> NewEvent:
    """A redaction; the writer puts `redacts` where the room's version keeps it."""
    return NewEvent("m.room.redaction", None, {k: v for k, v in content.items() if k != "redacts"}, target)

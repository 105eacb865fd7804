"""How services change a room: a command to its writer, the outcome, and what follows before the answer.

Spec: none; DESIGN.md sections 2, 3 and 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from tessera.clock import Clock
from tessera.commands import Append, Command, CommandBody, NewEvent, Outcome, OutcomeStatus, transaction_command_id
from tessera.fanout import Fanout
from tessera.http.authentication import Requester
from tessera.http.errors import MatrixError, Unavailable
from tessera.ids import IdSource
from tessera.memberships import changes_of_outcome, project_memberships
from tessera.room_commands import CommandUnanswered, RoomCommands
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

COMMAND_ID_BYTES = 32
# Longer than a partition takes to find its next writer (about 4 s), shorter than clients wait.
COMMAND_TIMEOUT_SECONDS = 20.0


class RoomUnavailable(Unavailable):
    """The change did not happen and will not: the room's writer did not answer in time (503)."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__("The room cannot be changed at the moment", retry_after_ms=retry_after_ms)


@dataclass(frozen=True, slots=True)
class Session:
    """Whoever changes a room: the user, and the device whose own events carry the transaction ID."""

    user_id: UserId
    device_id: str | None = None


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


@dataclass(frozen=True, slots=True)
class RoomChanges:
    """The way to the room writers and to the account store, which hears of moved memberships.

    Attributes:
        others: None where this server is the only one.
    """

    commands: RoomCommands
    shards: RoomShards
    accounts: Database
    fanout: Fanout
    clock: Clock
    ids: IdSource
    timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    others: OtherServers | None = None

    async def submit(
        self, room_id: RoomId, sender: UserId, body: CommandBody, *, command_id: bytes | None = None
    ) -> Outcome:
        """Have a change made and answer its outcome, once the users' room lists know of it.

        Args:
            command_id: of a request that a client may repeat; None for one that is always new.

        Raises:
            MatrixError: the writer refused it.
            RoomUnavailable: it will not happen.
        """
        command = Command(
            command_id or self.ids.random_bytes(COMMAND_ID_BYTES),
            room_id,
            self.shards.partition_of(room_id),
            sender,
            self.clock.now_ms(),
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
        outcome = await self.submit(room_id, session.user_id, body, command_id=command_id)
        return outcome.event_ids[0] if outcome.event_ids else None


def new_redaction(content: dict[str, Any], target: EventId) -> NewEvent:
    """A redaction; the writer puts `redacts` where the room's version keeps it."""
    return NewEvent("m.room.redaction", None, {k: v for k, v in content.items() if k != "redacts"}, target)

"""Commands to the room writer and their outcomes.

Every command has an id and exactly one outcome, a row in its room's shard (DESIGN section 2,
invariants 4 and 5). A command carries all that the writer needs beside the room itself: the
gateway did the network and account-store work before.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Any, get_args

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import Receipt

# Of events that only bring forward extremities together: part of the DAG, and shown to nobody.
DUMMY_EVENT = "org.matrix.dummy_event"


class OutcomeStatus(IntEnum):
    """How a command ended; decided once."""

    ACCEPTED = 1
    REFUSED = 2
    WITHDRAWN = 3


# What a writer refuses where the room's policy server has to sign first: whoever asked for the event has it signed.
NEEDS_POLICY_SIGNATURE = "IO.TESSERA.NEEDS_POLICY_SIGNATURE"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A local event to be built by the writer (prev events, auth events, depth, hashes, signature)."""

    type: str
    state_key: str | None
    content: dict[str, Any]
    redacts: EventId | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """Build, authorise and commit one local event.

    A state event that its sender has already set with this content answers the old event's ID
    and makes no event.

    Attributes:
        expect_membership: for m.room.member: refuse (M_FORBIDDEN) unless the target's current
            membership (absent counts as "leave") is one of these; empty means any.
        done_if_membership: for m.room.member: accept without an event if the target's current
            membership is one of these (join when joined).
    """

    event: NewEvent
    sender_device: str | None = None
    txn_id: str | None = None
    expect_membership: tuple[str, ...] = ()
    done_if_membership: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateRoom:
    """Commit a whole new room or nothing: the signed create event and the events after it in order."""

    room_version: str
    create_pdu: bytes
    events: tuple[NewEvent, ...]
    sender_device: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Build and sign an event without committing it; the outcome's body is the PDU."""

    event: NewEvent


@dataclass(frozen=True, slots=True)
class AppendPdu:
    """Commit a finished PDU that other servers signed too."""

    pdu: bytes
    sender_device: str | None = None
    txn_id: str | None = None


@dataclass(frozen=True, slots=True)
class SetReceipts:
    """Public receipts of local users, batched for the room."""

    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class ReceivePdus:
    """Names of inbox rows with PDUs of this room from other servers, in order of arrival."""

    inbox_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unpark:
    """Ancestors have arrived: try the room's parked PDUs again."""


@dataclass(frozen=True, slots=True)
class EnterRoom:
    """Take in the state that is staged for a join of ours (tessera.storage.joins), and the join itself."""

    join_id: str


@dataclass(frozen=True, slots=True)
class NoteMembership:
    """A local user's membership in a room in which this server has no members: an invite, knock or leave.

    Nothing of the room changes here but that its users hear of it. Refused (409 M_BAD_STATE) if this server does
    follow the room: then the room's own events decide.

    Attributes:
        event_id, event_sender: of the member event.
        stripped_state: JSON array, for invites and knocks.
    """

    user_id: UserId
    membership: str
    event_id: EventId
    event_sender: UserId
    stripped_state: bytes | None = None


@dataclass(frozen=True, slots=True)
class NotePurged:
    """History of the room has been deleted (tessera.storage.purging): say so in a record."""


CommandBody = (
    Append
    | CreateRoom
    | Draft
    | AppendPdu
    | SetReceipts
    | ReceivePdus
    | Unpark
    | EnterRoom
    | NoteMembership
    | NotePurged
)
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(CommandBody)}


@dataclass(frozen=True, slots=True)
class Command:
    """One change of one room.

    Attributes:
        id: 32 bytes; for a client's send `transaction_command_id`, else random.
        partition: of the room (`partition_of`).
        origin_server_ts: milliseconds, fixed once by the gateway.
        reply_to: where the outcome is told (`Subscription.reply_address`); without it, its row is looked up.
        traceparent: of the trace that follows the command (tessera.tracing); empty if none does.
    """

    id: bytes
    room_id: RoomId
    partition: int
    sender: UserId
    origin_server_ts: int
    body: CommandBody
    reply_to: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class MembershipDelta:
    """A membership that the command changed, for the user log of a local user."""

    user_id: UserId
    membership: str
    event_id: EventId
    sender: UserId
    position: int
    stripped_state: bytes | None = None  # JSON array, for invites and knocks
    prev_membership: str = "leave"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command. Refusals carry the Matrix error that the client gets."""

    command_id: bytes
    status: OutcomeStatus
    partition: int
    incarnation: int = 0
    position: int = 0  # last record it made, 0 if none
    event_ids: tuple[EventId, ...] = ()
    http_status: int = 200
    errcode: str = ""
    error: str = ""
    body: bytes = b""  # the PDU of a draft
    memberships: tuple[MembershipDelta, ...] = ()


def partition_of(room_id: RoomId, partitions: int) -> int:
    """The partition of a room: a stable hash, the same in every process and release."""
    return int.from_bytes(sha256(room_id.encode()).digest()[:8], "big") % partitions


def transaction_command_id(user_id: UserId, device_id: str | None, method: str, path: str) -> bytes:
    """The id of a client's idempotent request; `path` includes the room and the transaction ID."""
    return sha256(orjson.dumps([user_id, device_id, method, path])).digest()


def encode_command(command: Command) -> bytes:
    """A command as bytes for a topic."""
    return orjson.dumps(
        [
            1,
            command.id.hex(),
            command.room_id,
            command.partition,
            command.sender,
            command.origin_server_ts,
            type(command.body).__name__,
            command.body,
            command.reply_to,
            command.traceparent,
        ],
        default=_encode_bytes,
    )


def decode_command(data: bytes) -> Command:
    """The inverse of encode_command."""
    _version, identifier, room_id, partition, sender, timestamp, kind, fields, *later = orjson.loads(data)
    body = _decode_kind(kind, fields)
    return Command(bytes.fromhex(identifier), room_id, partition, sender, timestamp, body, *later[:2])


def encode_outcome(outcome: Outcome) -> bytes:
    """An outcome as stored in its row and sent to the waiting gateway."""
    return orjson.dumps(outcome, default=_encode_bytes)


def decode_outcome(data: bytes) -> Outcome:
    """The inverse of encode_outcome."""
    fields = orjson.loads(data)
    fields["command_id"] = fields["command_id"].encode("latin-1")
    fields["body"] = fields["body"].encode("latin-1")
    fields["status"] = OutcomeStatus(fields["status"])
    fields["event_ids"] = tuple(fields["event_ids"])
    fields["memberships"] = tuple(_decode_delta(delta) for delta in fields["memberships"])
    return Outcome(**fields)


def _encode_bytes(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(type(value).__name__)


def _decode_delta(fields: dict[str, Any]) -> MembershipDelta:
    if fields["stripped_state"] is not None:
        fields["stripped_state"] = fields["stripped_state"].encode("latin-1")
    return MembershipDelta(**fields)


def _decode_kind(kind: str, fields: dict[str, Any]) -> CommandBody:
    if "event" in fields:
        fields["event"] = NewEvent(**fields["event"])
    if "events" in fields:
        fields["events"] = tuple(NewEvent(**event) for event in fields["events"])
    if "receipts" in fields:
        fields["receipts"] = tuple(Receipt(**receipt) for receipt in fields["receipts"])
    for name in ("pdu", "create_pdu", "stripped_state"):
        if fields.get(name) is not None:
            fields[name] = fields[name].encode("latin-1")
    for name in ("expect_membership", "done_if_membership", "inbox_ids"):
        if name in fields:
            fields[name] = tuple(fields[name])
    body: CommandBody = _KINDS[kind](**fields)
    return body

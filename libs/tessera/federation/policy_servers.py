"""Asking rooms' policy servers for signatures.

Spec: S-S API §Policy Servers, POST /_matrix/policy/v1/sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from matrixcore.event_signing import add_signature
from matrixcore.events import Event, InvalidEvent, parse_event
from matrixcore.identifiers import RoomId
from matrixcore.policy_servers import POLICY_KEY_ID, PolicyServer, is_recommended, parse_policy
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from tessera.federation.errors import PeerAnsweredBadly, PeerError, PeerRefused
from tessera.federation.own_policy_server import OwnPolicyServer
from tessera.http.errors import Forbidden, LimitExceeded, MatrixError, NotFound
from tessera.storage import resident_rooms, room_policies
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

SIGN_PATH = "/_matrix/policy/v1/sign"
SIGN_SECONDS = 10.0
MAX_ANSWER_BYTES = 64 << 10
MAX_WAIT_MS = 60_000  # that a policy server may tell a client to wait


class PolicyClient(Protocol):
    """What is needed of `FederationClient`."""

    async def post(
        self, server: str, path: str, body: Mapping[str, Any], *, timeout_s: float = ..., max_bytes: int = ...
    ) -> dict[str, Any]:
        """POST a JSON object. Raises PeerError."""


@dataclass(frozen=True, slots=True)
class RoomPolicy:
    """A room with its policy server; None where it uses none."""

    rules: RoomVersionRules
    server: PolicyServer | None


@dataclass(frozen=True, slots=True)
class PolicyServers:
    """The way to the policy servers of this server's rooms."""

    client: PolicyClient
    shards: RoomShards
    own: OwnPolicyServer | None = None  # this one, which asks itself without a request

    async def find(self, room_id: RoomId) -> RoomPolicy | None:
        """What current state says; None if the room is not known here."""
        async with self.shards.of_room(room_id).reading() as tx:
            found = await room_policies.find_policy(tx, room_id)
            if found is None:
                return None
            server = None if found.content is None else parse_policy(found.content)
            if server is not None and not await resident_rooms.list_rooms_of_server(tx, [room_id], server.name):
                server = None
        return RoomPolicy(ROOM_VERSIONS[found.room_version], server)

    async def sign(self, room_id: RoomId, pdu: bytes) -> bytes:
        """A PDU with its room's policy server's signature, if it needs one: `tessera.room_changes.PolicySigner`.

        Raises:
            MatrixError: the policy server refuses (its own words), cannot be asked (502), or signs with another key.
        """
        room = await self.find(room_id)
        if room is None:
            raise NotFound("This room is not known here")
        try:
            event = parse_event(pdu, room.rules)
        except InvalidEvent as error:
            raise MatrixError(error.reason, errcode="M_BAD_JSON") from error
        if room.server is None or is_recommended(event, room.server):
            return pdu
        try:
            signed = await self.ask(room.server, event)
        except PeerError as trouble:
            log.info("not signed by the policy server", room_id=room_id, server=room.server.name, reason=str(trouble))
            raise _client_error(trouble) from trouble
        if not is_recommended(signed, room.server):
            raise Forbidden("The room's policy server signs with another key than the room's")
        return signed.pdu

    async def ask(self, server: PolicyServer, event: Event) -> Event:
        """An event with what the policy server answers as its signature, which is not checked here.

        Raises:
            PeerError: or, of this server itself, NotRecommended and LimitExceeded.
        """
        if self.own is not None and server.name == self.own.name:
            return add_signature(event, server.name, POLICY_KEY_ID, self.own.sign(event))
        answer = await self.client.post(
            server.name, SIGN_PATH, event.fields, timeout_s=SIGN_SECONDS, max_bytes=MAX_ANSWER_BYTES
        )
        signatures = answer.get(server.name)
        signature = signatures.get(POLICY_KEY_ID) if isinstance(signatures, Mapping) else None
        if not isinstance(signature, str):
            raise PeerAnsweredBadly("no signature of a policy server")
        return add_signature(event, server.name, POLICY_KEY_ID, signature)


def _client_error(trouble: PeerError) -> MatrixError:
    """What a client is told: the policy server's own words where it has answered."""
    if isinstance(trouble, PeerRefused):
        message = trouble.message or "The room's policy server refuses the event"
        if trouble.status == 429:
            return LimitExceeded(min(trouble.retry_after_ms or 1_000, MAX_WAIT_MS), message)
        if 400 <= trouble.status < 500:
            return MatrixError(message, errcode=trouble.errcode, status=trouble.status)
    return MatrixError("The room's policy server cannot be asked", errcode="M_UNKNOWN", status=502)

"""PUT /send: PDUs and EDUs of another server.

What is answered with 200 is stored: the PDUs in the inboxes of their shards, then the EDUs that must not be lost in
one commit with the transaction's row. A transaction that was cut off in between is taken in once more.

Spec: S-S API §Transactions, §EDUs.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import ServerName
from services.federation_in import metrics
from services.federation_in.naming import InboxNaming
from services.federation_in.receiving import PduReceiver, Received
from services.federation_in.routing import V1
from services.federation_in.signs_of_life import SignsOfLife
from tessera.clock import Clock
from tessera.federation.authentication import Peer, PeerAuthenticator
from tessera.http.deadlines import deadline
from tessera.http.errors import BadJson, InvalidParam, Unavailable
from tessera.http.replies import json_bytes_reply
from tessera.storage import received_transactions
from tessera.storage.database import Database

log = structlog.get_logger(__name__)

MAX_PDUS = 50
MAX_EDUS = 100
MAX_TXN_ID = 255
MAX_LYING_EDUS = 5_000  # of one server
MAX_ORIGINS = 10_000  # whose locks are remembered

# What happens once only: lost or repeated, it would be missed. The others are forgotten with the process.
DURABLE_EDUS = frozenset(
    ("m.direct_to_device", "m.device_list_update", "m.signing_key_update", "org.matrix.signing_key_update")
)


class EduReceiver(Protocol):
    """Where EDUs take effect."""

    async def receive_edus(self, origin: ServerName, edus: Sequence[Mapping[str, Any]]) -> None:
        """EDUs that are not stored; they may be dropped. Must not wait for the network."""

    def wake(self) -> None:
        """EDUs have been stored (`storage.received_transactions.list_edus`)."""


class InviteRescinder(Protocol):
    """What becomes of PDUs of rooms in which this server has nobody."""

    async def take_back(self, origin: ServerName, pdus: Sequence[Mapping[str, Any]]) -> None:
        """End those invites of local users that these PDUs end; everything else is dropped."""


@dataclass(frozen=True, slots=True)
class TransactionReceiver:
    """Takes in whole transactions.

    Attributes:
        edus: None drops what is not stored.
        life: told who is there.
    """

    accounts: Database
    pdus: PduReceiver
    naming: InboxNaming
    clock: Clock
    edus: EduReceiver | None = None
    rescinder: InviteRescinder | None = None
    life: SignsOfLife | None = None
    locks: "OriginLocks" = field(default_factory=lambda: OriginLocks())

    async def receive(self, peer: Peer, txn_id: str) -> bytes:
        """The reply to a transaction, the same as before if it was answered before.

        Raises:
            BadJson: no transaction, or too large a one. Unavailable, DatabaseUnavailable
        """
        began = self.clock.monotonic()
        outcome = "refused"
        try:
            reply, is_new = await self._receive(peer, txn_id)
            outcome = "taken" if is_new else "repeated"
        finally:
            metrics.TRANSACTIONS.labels(outcome).inc()
        metrics.RECEIVE_SECONDS.observe(self.clock.monotonic() - began)
        return reply

    async def _receive(self, peer: Peer, txn_id: str) -> tuple[bytes, bool]:
        """The reply, and whether the transaction had not come before."""
        pdus, edus = _parts_of(peer.content)
        if self.life is not None:
            await self.life.note(peer.origin)
        async with self.locks.of(peer.origin):
            async with self.accounts.reading() as tx:
                if (reply := await received_transactions.find_reply(tx, peer.origin, txn_id)) is not None:
                    return reply, False
            return await self._take_in(peer.origin, txn_id, pdus, edus), True

    async def _take_in(
        self, origin: ServerName, txn_id: str, pdus: Sequence[object], edus: Sequence[Mapping[str, Any]]
    ) -> bytes:
        received = await self.pdus.receive(origin, pdus)
        results = {event_id: {} if wrong is None else {"error": wrong} for event_id, wrong in received.results.items()}
        reply = orjson.dumps({"pdus": results})
        if received.unknown and self.rescinder is not None:
            await self.rescinder.take_back(origin, received.unknown)
        durable = [edu for edu in edus if edu["edu_type"] in DURABLE_EDUS]
        async with self.accounts.reading() as tx:
            if durable and await received_transactions.count_edus(tx, origin, MAX_LYING_EDUS) >= MAX_LYING_EDUS:
                raise Unavailable("Too many of your EDUs wait", retry_after_ms=30_000)
            await received_transactions.add(tx, origin, txn_id, reply, durable, self.clock.now_ms())
        _count(received, edus)
        await self.naming.name(received.names)
        if self.edus is not None:
            if durable:
                self.edus.wake()
            if passing := [edu for edu in edus if edu["edu_type"] not in DURABLE_EDUS]:
                await self.edus.receive_edus(origin, passing)
        return reply


class OriginLocks:
    """One transaction of a server at a time, so that a repeated one finds the reply of the first."""

    def __init__(self) -> None:
        self._locks: OrderedDict[ServerName, asyncio.Lock] = OrderedDict()

    def of(self, origin: ServerName) -> asyncio.Lock:
        """The lock of a server."""
        lock = self._locks.get(origin)
        if lock is None:
            lock = self._locks[origin] = asyncio.Lock()
            if len(self._locks) > MAX_ORIGINS:
                self._locks = OrderedDict((name, one) for name, one in self._locks.items() if one.locked())
                self._locks[origin] = lock
        return lock


@deadline(60.0)
async def send_transaction(request: Request) -> Response:
    """Take in a transaction."""
    peers: PeerAuthenticator = request.app.state.peers
    receiver: TransactionReceiver = request.app.state.transactions
    txn_id: str = request.path_params["txn_id"]
    if len(txn_id) > MAX_TXN_ID or "\0" in txn_id:
        raise InvalidParam("The transaction ID is too long")
    async with peers.admitted(request) as peer:
        return json_bytes_reply(await receiver.receive(peer, txn_id))


routes = [Route(V1 + "/send/{txn_id}", send_transaction, methods=["PUT"])]


def _count(received: Received, edus: Sequence[Mapping[str, Any]]) -> None:
    stored = sum(wrong is None for wrong in received.results.values())
    metrics.PDUS.labels("stored").inc(stored)
    metrics.PDUS.labels("dropped").inc(len(received.results) - stored)
    metrics.PDUS.labels("unknown").inc(len(received.unknown))
    for edu in edus:
        metrics.count_edu(edu["edu_type"])


def _parts_of(content: Mapping[str, Any]) -> tuple[list[object], list[Mapping[str, Any]]]:
    """The PDUs and the EDUs, these with an edu_type and a content. `origin` is what the request is signed by."""
    pdus, edus = content.get("pdus", []), content.get("edus", [])
    if not isinstance(pdus, list) or not isinstance(edus, list):
        raise BadJson("pdus and edus must be arrays")
    if len(pdus) > MAX_PDUS or len(edus) > MAX_EDUS:
        raise BadJson(f"A transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs")
    good = [
        edu
        for edu in edus
        if isinstance(edu, Mapping) and isinstance(edu.get("edu_type"), str) and isinstance(edu.get("content"), Mapping)
    ]
    return pdus, good

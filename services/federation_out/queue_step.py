"""From room.log to the queues: who is to be sent which event and which receipts.

Spec: S-S API §Transactions, §Receipts; DESIGN.md section 6.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import RoomId, ServerName, server_of
from services.federation_out.room_servers import RoomServers
from tessera.federation.policy import FederationPolicy
from tessera.record_consumer import AfterCommit
from tessera.records import EventBody, LogRecord, Receipt, ReceiptsBody
from tessera.storage import federation_queue
from tessera.storage.database import Transaction
from tessera.storage.federation_queue import Lane, NewEdu, NewPdu

CONSUMER = "federation_out"
PUBLIC = "m.read"


@dataclass(frozen=True, slots=True)
class QueueStep:
    """Puts what this server's users do, and what it passes on for others, into the queues of who must hear of it.

    Attributes:
        wake: called after the commit.
    """

    server_name: ServerName
    policy: FederationPolicy
    servers: RoomServers
    buckets: int
    wake: Callable[[], Awaitable[None]]

    def concerns(self, record: LogRecord) -> bool:
        """Events that are ours to send, and receipts of our users."""
        match record.body:
            case EventBody(servers=servers):
                return bool(servers) and (record.event.forwarded or self._is_ours(record.event.sender))
            case ReceiptsBody(receipts=receipts):
                return any(self._is_sent(receipt) for receipt in receipts)
            case _:
                return False

    async def prepare(self, records: Sequence[LogRecord]) -> Mapping[RoomId, Sequence[ServerName]]:
        """The servers of rooms with receipts."""
        rooms = dict.fromkeys(record.room_id for record in records if isinstance(record.body, ReceiptsBody))
        return await self.servers.find(list(rooms)) if rooms else {}

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """A batch that is taken once more is sent once more; peers know events by their IDs."""
        servers = cast("Mapping[RoomId, Sequence[ServerName]]", prepared)
        pdus = [pdu for record in records if isinstance(record.body, EventBody) for pdu in self._pdus_of(record)]
        edus = list(self._receipts_of(records, servers))
        await federation_queue.add_pdus(tx, pdus, self.buckets)
        await federation_queue.add_edus(tx, edus, self.buckets)
        return self.wake if pdus or edus else None

    def _pdus_of(self, record: LogRecord) -> Iterator[NewPdu]:
        event = record.event
        origin = server_of(event.sender)
        for server in event.servers:
            if server != origin and self.policy.allows(server):
                yield NewPdu(server, record.room_id, event.event_id)

    def _receipts_of(
        self, records: Sequence[LogRecord], servers: Mapping[RoomId, Sequence[ServerName]]
    ) -> Iterator[NewEdu]:
        """One EDU for a room and each of its servers, whatever the number of receipts."""
        rooms: dict[RoomId, list[Receipt]] = {}
        for record in records:
            if isinstance(record.body, ReceiptsBody):
                own = [receipt for receipt in record.body.receipts if self._is_sent(receipt)]
                rooms.setdefault(record.room_id, []).extend(own)
        for room_id, receipts in rooms.items():
            for edu in receipt_edus(room_id, receipts):
                for server in servers.get(room_id, ()):
                    if self.policy.allows(server):
                        yield NewEdu(server, Lane.RECEIPTS, edu)

    def _is_sent(self, receipt: Receipt) -> bool:
        return receipt.receipt_type == PUBLIC and self._is_ours(receipt.user_id)

    def _is_ours(self, user_id: str) -> bool:
        return user_id.partition(":")[2] == self.server_name


def receipt_edus(room_id: RoomId, receipts: Sequence[Receipt]) -> Iterator[bytes]:
    """The EDUs of a room's receipts: one has a single receipt of each user. Spec: S-S API §Receipts."""
    layers: list[dict[str, Any]] = []
    newest: dict[tuple[str, str], Receipt] = {(one.user_id, one.thread_id): one for one in receipts}
    for receipt in newest.values():
        layer = next((layer for layer in layers if receipt.user_id not in layer), None)
        if layer is None:
            layers.append(layer := {})
        data: dict[str, Any] = {"ts": receipt.ts}
        if receipt.thread_id:
            data["thread_id"] = receipt.thread_id
        layer[receipt.user_id] = {"data": data, "event_ids": [receipt.event_id]}
    for layer in layers:
        yield encode_canonical_json({"edu_type": "m.receipt", "content": {room_id: {PUBLIC: layer}}})

"""Making transactions of what waits in the queues.

Spec: S-S API §Transactions.
"""

from collections.abc import Iterable, Mapping, Sequence

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.storage import federation_queue, federation_rooms
from tessera.storage.database import Database
from tessera.storage.federation_queue import MAX_EDUS, MAX_PDUS, NewPdu, QueuedEdu, QueuedPdu
from tessera.storage.shards import RoomShards

MAX_EDU_BYTES = 2 << 20  # of one transaction; 50 PDUs are at most 3.2 MB, and peers take some 10 MB

EventName = tuple[RoomId, EventId]


def fit_edus(edus: Sequence[QueuedEdu], places: int = MAX_EDUS) -> list[QueuedEdu]:
    """As many of the first EDUs as a transaction has room for, and one in any case."""
    fitting: list[QueuedEdu] = []
    size = 0
    for edu in edus[:places]:
        size += len(edu.edu)
        if fitting and size > MAX_EDU_BYTES:
            break
        fitting.append(edu)
    return fitting


def transaction_body(origin: ServerName, now_ms: int, pdus: Iterable[bytes], edus: Iterable[bytes]) -> bytes:
    """The canonical JSON of a transaction; the parts are canonical JSON already."""
    return b'{"edus":[%b],"origin":%b,"origin_server_ts":%d,"pdus":[%b]}' % (
        b",".join(edus),
        encode_canonical_json(origin),
        now_ms,
        b",".join(pdus),
    )


async def load_pdus(shards: RoomShards, queued: Iterable[QueuedPdu]) -> Mapping[EventName, bytes]:
    """The bytes of events, one query a shard; each is there once, for however many servers.

    Raises:
        DatabaseUnavailable
    """
    groups: dict[str, dict[EventName, None]] = {}
    for pdu in queued:
        shard = shards.shard_of(shards.partition_of(pdu.room_id))
        groups.setdefault(shard, {})[pdu.room_id, pdu.event_id] = None
    found: dict[EventName, bytes] = {}
    for shard, names in groups.items():
        async with shards.databases[shard].reading() as tx:
            found |= await federation_rooms.list_pdus(tx, list(names))
    return found


async def catch_up(
    accounts: Database, shards: RoomShards, buckets: int, destination: ServerName, own: ServerName
) -> None:
    """Queue the newest events of rooms that a destination has missed, as many as a transaction carries.

    The marks go first, in the transaction that queues the events: an event that comes meanwhile waits for its end and
    marks the room again.

    Raises:
        DatabaseUnavailable
    """
    async with accounts.transaction() as tx:
        rooms = await federation_queue.take_marks(tx, destination, MAX_PDUS)
        newest: dict[RoomId, EventId] = {}
        for shard, names in shards.group_rooms(rooms).items():
            async with shards.databases[shard].reading() as shard_tx:
                newest |= await federation_rooms.list_newest(shard_tx, names, destination, own)
        await federation_queue.add_missed(tx, [NewPdu(destination, room, event) for room, event in newest.items()])

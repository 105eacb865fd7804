"""Changes of local users' devices and keys, from the account store's stream into the queues.

The stream is dense, so one cursor says what has been queued, moved in the transaction that queues it. An
update's stream_id is its position; prev_id names the user's update before it, whoever was sent that one: a server
that missed it asks for the whole list, as it should.

Spec: S-S API §Device Management, §End-to-End Encryption.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import ServerName, UserId, server_of
from services.federation_out.room_servers import RoomServers
from tessera.clock import Clock
from tessera.federation.policy import FederationPolicy
from tessera.storage import consumer_cursors, cross_signing, device_changes, device_keys, federation_queue
from tessera.storage.consumer_cursors import BEGINNING, Cursor
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.device_changes import DeviceChangeRow
from tessera.storage.federation_queue import Lane, NewEdu

log = structlog.get_logger(__name__)

CONSUMER = "federation_devices"
STREAM = 0  # the one partition of the stream's cursor
BATCH = 500
LOOK_SECONDS = 5.0
PAUSE_SECONDS = 1.0

Servers = Mapping[UserId, set[ServerName]]


@dataclass(slots=True)
class DeviceListFeed:
    """Queues device updates; one process at a time, the one that has bucket 0.

    Attributes:
        is_ours: whether this process has it now.
        wake: called after a commit.
    """

    accounts: Database
    servers: RoomServers
    policy: FederationPolicy
    clock: Clock
    server_name: ServerName
    buckets: int
    is_ours: Callable[[], bool]
    wake: Callable[[], Awaitable[None]]
    woken: asyncio.Event

    def on_device_wake(self, _: object) -> None:
        """The stream has moved."""
        self.woken.set()

    async def run(self) -> None:
        """Run for ever; a store that is away is waited for."""
        while True:
            self.woken.clear()
            try:
                if self.is_ours() and await self.step():
                    continue
            except DatabaseUnavailable as error:
                log.warning("device lists are not queued", error=str(error))
                await self.clock.sleep(PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self.woken.wait()

    async def step(self) -> bool:
        """Queue a batch of changes; whether there may be more. Raises DatabaseUnavailable."""
        async with self.accounts.reading() as tx:
            cursor = (await consumer_cursors.list_cursors(tx, CONSUMER)).get(STREAM, BEGINNING)
            head = await device_changes.find_head(tx)
            if head <= cursor.position:
                return False
            rows = await device_changes.list_changes(tx, cursor.position, head, BATCH)
        own = [row for row in rows if not row.change.observer and server_of(row.change.user_id) == self.server_name]
        users = sorted({row.change.user_id for row in own})
        servers = await self.servers.find_of_users(users) if users else {}
        last = rows[-1].position if rows else head
        async with self.accounts.transaction() as tx:
            edus = await self._edus_of(tx, own, servers) if own else []
            await federation_queue.add_edus(tx, edus, self.buckets)
            await consumer_cursors.move_cursor(tx, CONSUMER, STREAM, Cursor(1, last))
        if edus:
            await self.wake()
        return len(rows) == BATCH

    async def _edus_of(self, tx: Transaction, rows: Sequence[DeviceChangeRow], servers: Servers) -> list[NewEdu]:
        heard = [row for row in rows if any(self.policy.allows(name) for name in servers[row.change.user_id])]
        if not heard:
            return []
        devices = [(row.change.user_id, row.change.device_id) for row in heard if row.change.device_id]
        users = sorted({row.change.user_id for row in heard})
        keys = {(one.user_id, one.device_id): one.content for one in await device_keys.list_of_devices(tx, devices)}
        signing: dict[UserId, dict[str, Any]] = {}
        for key in await cross_signing.list_visible(tx, users, None):
            if key.usage != "user_signing":
                signing.setdefault(key.user_id, {})[f"{key.usage}_key"] = orjson.loads(key.content)
        previous = await device_changes.list_previous(tx, [(row.change.user_id, row.position) for row in heard])
        edus: list[NewEdu] = []
        for row in heard:
            for subject, edu in _contents(row, keys, signing, previous):
                edus += [
                    NewEdu(name, Lane.KEYS, edu, subject)
                    for name in sorted(servers[row.change.user_id])
                    if self.policy.allows(name)
                ]
        return edus


def _contents(
    row: DeviceChangeRow,
    keys: Mapping[tuple[UserId, str], bytes],
    signing: Mapping[UserId, Mapping[str, Any]],
    previous: Mapping[tuple[UserId, int], int],
) -> Iterator[tuple[str, bytes]]:
    """(subject, EDU) of one change; of cross-signing keys both the stable name and the one that old servers know."""
    user_id, device_id = row.change.user_id, row.change.device_id
    if not device_id:
        if user_id in signing:
            content = {"user_id": user_id, **signing[user_id]}
            for edu_type in ("m.signing_key_update", "org.matrix.signing_key_update"):
                yield f"{user_id} {edu_type}", encode_canonical_json({"edu_type": edu_type, "content": content})
        return
    before = previous.get((user_id, row.position))
    update: dict[str, Any] = {
        "user_id": user_id,
        "device_id": device_id,
        "stream_id": row.position,
        "prev_id": [] if before is None else [before],
    }
    found = keys.get((user_id, device_id))
    if found is None:
        update["deleted"] = True
    else:
        update["keys"] = orjson.loads(found)
    yield user_id, encode_canonical_json({"edu_type": "m.device_list_update", "content": update})

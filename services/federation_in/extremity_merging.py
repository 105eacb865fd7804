"""Rooms with many forward extremities, brought together by events that nobody is shown.

Each event of this server's users does so in passing. Where none of them says anything, a peer may leave a room with
any number of extremities, all of whose states every further event has to be resolved with.

Spec: none; the event type is the one that other servers use for this.
"""

import asyncio

import structlog

from matrixcore.identifiers import RoomId, UserId
from services.federation_in.dependencies import FederationInDeps
from services.federation_in.member_events import changes_of
from tessera.commands import DUMMY_EVENT, Append, NewEvent
from tessera.http.errors import MatrixError
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.peer_rooms import count_extremities, list_scattered_rooms, list_senders

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 60.0
MANY = 20  # extremities; below, whoever speaks next merges them all
ROOMS = 20  # of one shard at once
SENDERS = 5  # users who are tried
EVENTS = 100  # for one room at once


async def run(deps: FederationInDeps) -> None:
    """Run for ever. Several processes may: an event too many does no harm."""
    while True:
        await deps.clock.sleep(SWEEP_SECONDS)
        for name, database in deps.shards.databases.items():
            try:
                async with database.reading() as tx:
                    rooms = await list_scattered_rooms(tx, MANY, ROOMS)
                for room_id in rooms:
                    await merge(deps, room_id)
            except (DatabaseUnavailable, OSError, TimeoutError) as error:
                log.warning("extremities not merged", shard=name, error=str(error) or type(error).__name__)


async def merge(deps: FederationInDeps, room_id: RoomId) -> None:
    """Let somebody of this server's, who may, send events until few extremities are left."""
    database = deps.shards.of_room(room_id)
    async with database.reading() as tx:
        senders = await list_senders(tx, room_id, deps.server_name, SENDERS)
    for sender in senders:
        for _ in range(EVENTS):
            async with database.reading() as tx:
                if await count_extremities(tx, room_id) <= MANY:
                    return
            if not await _send(deps, room_id, sender):
                break
    log.info("extremities not merged", room_id=room_id, reason="nobody may send")


async def _send(deps: FederationInDeps, room_id: RoomId, sender: UserId) -> bool:
    try:
        await changes_of(deps).submit(room_id, sender, Append(NewEvent(DUMMY_EVENT, None, {})))
    except MatrixError as error:
        log.info("extremities not merged", room_id=room_id, reason=error.message)
        return False
    await asyncio.sleep(0)
    return True

"""Deleting old messages of a room at an administrator's wish.

The row of the account store is the debt; deleting goes slice by slice and may be begun anew by anybody. At the end the
room's writer says so in a record of kind purged.

Spec: none; as Synapse's purge history API. DESIGN.md section 4.
"""

from hashlib import sha256
from typing import Any

import orjson
import structlog
from fastapi import APIRouter
from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from services.gateway.administration import ADMIN_V1, AdminRequester
from services.gateway.dependencies import GatewayDep
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.room_changes import RoomChanges
from tessera.clock import Clock
from tessera.commands import NotePurged
from tessera.http.errors import BadJson, MatrixError, NotFound
from tessera.http.replies import json_reply
from tessera.storage import purging, room_purges
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.purging import PartitionMoved
from tessera.storage.room_purges import RoomPurge
from tessera.storage.room_reads.rooms import find_for_reader

router = APIRouter(prefix=ADMIN_V1)
log = structlog.get_logger(__name__)

SWEEP_SECONDS = 2.0
PAUSE_SECONDS = 0.02  # between two slices, so that the room's writer is not held up
PURGE_ID_BYTES = 12
NOBODY = UserId("")

# What Synapse calls the phases.
_STATUS = {"delete": "active", "announce": "active", "complete": "complete", "failed": "failed"}


@router.post("/purge_history/{room_id}")
async def purge_history(
    room_id: str, body: OptionalJsonObject, _admin: AdminRequester, gateway: GatewayDep
) -> Response:
    """Begin to delete messages, up to the event or time in the body."""
    return await _begin(gateway.rooms, room_id_of(room_id), None, body)


@router.post("/purge_history/{room_id}/{event_id}")
async def purge_history_up_to_event(
    room_id: str, event_id: str, body: OptionalJsonObject, _admin: AdminRequester, gateway: GatewayDep
) -> Response:
    """Begin to delete messages that came before an event."""
    return await _begin(gateway.rooms, room_id_of(room_id), event_id_of(event_id), body)


@router.get("/purge_history_status/{purge_id}")
async def get_purge_history_status(purge_id: str, _admin: AdminRequester, gateway: GatewayDep) -> Response:
    """How a purge stands: active, complete or failed."""
    async with gateway.accounts.reading() as tx:
        purge = await room_purges.find_purge(tx, purge_id)
    if purge is None:
        raise NotFound("There is no such purge, or it ended long ago")
    reply = {"status": _STATUS[purge.phase]}
    return json_reply({**reply, "error": purge.error} if purge.error else reply)


async def _begin(changes: RoomChanges, room_id: RoomId, event_id: EventId | None, body: dict[str, Any]) -> Response:
    with_local_events = body.get("delete_local_events", False)
    if not isinstance(with_local_events, bool):
        raise BadJson("delete_local_events must be a boolean")
    up_to = await _find_bound(changes, room_id, event_id, body)
    purge = RoomPurge(changes.ids.token(PURGE_ID_BYTES), room_id, up_to, with_local_events)
    async with changes.accounts.transaction() as tx:
        if await room_purges.has_open_purge(tx, room_id):
            raise MatrixError(f"History purge already in progress for {room_id}", errcode="M_UNKNOWN", status=400)
        await room_purges.add_purge(tx, purge)
    return json_reply({"purge_id": purge.purge_id})


async def _find_bound(changes: RoomChanges, room_id: RoomId, event_id: EventId | None, body: dict[str, Any]) -> int:
    """The last anchor to delete at; the newest event of the room always stays."""
    wanted, ts = event_id or body.get("purge_up_to_event_id"), body.get("purge_up_to_ts")
    if wanted is not None and not isinstance(wanted, str):
        raise BadJson("purge_up_to_event_id must be a string")
    if wanted is None and type(ts) is not int:
        raise BadJson("purge_up_to_event_id or purge_up_to_ts is needed")
    async with changes.shards.of_room(room_id).reading() as tx:
        found = await find_for_reader(tx, room_id, NOBODY)
        if found is None:
            raise NotFound("This room is not known here")
        if wanted is not None:
            up_to = await purging.find_bound_before(tx, room_id, EventId(wanted))
        else:
            assert type(ts) is int
            up_to = await purging.find_bound(tx, room_id, before_ts=max(-(1 << 62), min(ts, 1 << 62)))
    if up_to is None:
        raise NotFound("There is no event to be purged")
    return up_to


async def run(changes: RoomChanges, server_name: ServerName, clock: Clock) -> None:
    """Work off what is owed, for ever."""
    while True:
        try:
            await purge_all(changes, server_name, clock)
        except DatabaseUnavailable:
            log.warning("purges are not readable")
        await clock.sleep(SWEEP_SECONDS)


async def purge_all(changes: RoomChanges, server_name: ServerName, clock: Clock) -> None:
    """Do every purge that nobody is at; one that cannot be done now is tried again when its claim has run out."""
    while True:
        async with changes.accounts.transaction() as tx:
            purge = await room_purges.claim_purge(tx)
        if purge is None:
            break
        try:
            await carry_out(changes, server_name, clock, purge)
        except (DatabaseUnavailable, PartitionMoved):
            log.warning("purge interrupted", room_id=purge.room_id)
        except MatrixError as error:
            log.warning("purge interrupted", room_id=purge.room_id, errcode=error.errcode)
        except Exception as error:  # an administrator asks how it went; the next one is to have its turn
            log.exception("purge failed", room_id=purge.room_id)
            async with changes.accounts.transaction() as tx:
                await room_purges.advance_purge(tx, purge, "failed", type(error).__name__)
    async with changes.accounts.transaction() as tx:
        await room_purges.sweep_purges(tx)


async def carry_out(changes: RoomChanges, server_name: ServerName, clock: Clock, purge: RoomPurge) -> None:
    """Delete, then tell the room. Repeatable from the beginning."""
    if purge.phase == "delete":
        deleted = await _delete(changes, server_name, clock, purge)
        log.info("history purged", room_id=purge.room_id, deleted=deleted)
        async with changes.accounts.transaction() as tx:
            purge = await room_purges.advance_purge(tx, purge, "announce")
    command_id = sha256(orjson.dumps(["purge", purge.purge_id])).digest()
    await changes.submit(purge.room_id, NOBODY, NotePurged(), command_id=command_id)
    async with changes.accounts.transaction() as tx:
        await room_purges.advance_purge(tx, purge, "complete")


async def _delete(changes: RoomChanges, server_name: ServerName, clock: Clock, purge: RoomPurge) -> int:
    after, deleted = None, 0
    spared = None if purge.with_local_events else server_name
    while True:
        async with changes.shards.of_room(purge.room_id).transaction() as tx:
            found = await purging.delete_slice(tx, purge.room_id, purge.up_to, after, spared_server=spared)
        if found is None:
            break
        after, deleted = found.reached, deleted + found.deleted
        async with changes.accounts.transaction() as tx:
            await room_purges.hold_purge(tx, purge)
        await clock.sleep(PAUSE_SECONDS)
    async with changes.shards.of_room(purge.room_id).transaction() as tx:
        await purging.delete_what_hung_on_them(tx, purge.room_id, purge.up_to)
    return deleted

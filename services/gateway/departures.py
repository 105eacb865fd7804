"""A closed account leaves its rooms, rejects its invites and takes its knocks back.

The debt is a row written with the closing, so that a crash in between forgets nothing. A command's id is made of
the row and of the event that put the user into the room: whoever repeats it, here or in another gateway, gets
the outcome that is there.

Spec: C-S API §Account deactivation.
"""

import asyncio
from hashlib import sha256

import orjson
import structlog

from matrixcore.identifiers import RoomId, UserId
from services.gateway.room_changes import RoomChanges
from tessera.clock import Clock
from tessera.commands import Append, NewEvent
from tessera.http.errors import MatrixError
from tessera.room_changes import OtherServers
from tessera.storage import departures
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.departures import Departure, RoomToLeave

SEED_BYTES = 16
SWEEP_SECONDS = 60.0
PARALLEL_ROOMS = 8
ROOMS_AT_ONCE = 100

log = structlog.get_logger(__name__)


async def run(changes: RoomChanges, clock: Clock) -> None:
    """Work off what is owed, at the start and then once a minute, for ever."""
    while True:
        try:
            await depart_all(changes)
        except DatabaseUnavailable:
            log.warning("rooms to leave are not readable")
        await clock.sleep(SWEEP_SECONDS)


async def depart_all(changes: RoomChanges) -> None:
    """Try every open debt once."""
    after = ""
    while True:
        async with changes.accounts.reading() as tx:
            owed = await departures.list_departures(tx, after)
        if not owed:
            return
        for departure in owed:
            try:
                await depart(changes, departure)
            except Exception:  # one user's rooms being away must not hold up the others
                log.warning("rooms not left", user_id=departure.user_id, exc_info=True)
        after = owed[-1].user_id


async def depart(changes: RoomChanges, departure: Departure) -> None:
    """Leave all rooms of one user and strike out the debt, unless a join may still be on its way. Repeatable.

    Raises:
        MatrixError: some rooms could not be asked (503); the others are left.
    """
    after, unanswered = "", None
    while True:
        async with changes.accounts.reading() as tx:
            rooms = await departures.list_rooms_to_leave(tx, departure.user_id, after, ROOMS_AT_ONCE)
        if not rooms:
            break
        unanswered = await _leave_rooms(changes, departure, rooms) or unanswered
        after = rooms[-1].room_id
    if unanswered is not None:
        raise unanswered
    async with changes.accounts.transaction() as tx:
        await departures.settle_departure(tx, departure)


async def _leave_rooms(changes: RoomChanges, departure: Departure, rooms: list[RoomToLeave]) -> MatrixError | None:
    """Leave some rooms, several side by side; the error of one that could not be asked."""
    places = asyncio.Semaphore(PARALLEL_ROOMS)

    async def leave(room: RoomToLeave) -> MatrixError | None:
        async with places:
            command_id = leave_command_id(departure, room)
            return await leave_room_once(changes, departure.user_id, room.room_id, command_id)

    errors = await asyncio.gather(*(leave(room) for room in rooms))
    return next((error for error in errors if error is not None), None)


async def leave_room_once(
    changes: RoomChanges, user_id: UserId, room_id: RoomId, command_id: bytes
) -> MatrixError | None:
    """Leave a room on the server's own account: the error if it could not be asked, and is to be asked again."""
    event = NewEvent("m.room.member", user_id, {"membership": "leave"})
    try:
        await changes.submit(room_id, user_id, Append(event, done_if_membership=("leave",)), command_id=command_id)
    except MatrixError as error:
        if error.status == 503:
            return error
        if error.errcode == "M_NOT_FOUND" and changes.others is not None:
            return await _leave_elsewhere(changes.others, user_id, room_id)
        # Banned meanwhile, or a room that is not here: nothing can be left there.
        log.info("room not left", room_id=room_id, errcode=error.errcode)
    return None


async def _leave_elsewhere(others: OtherServers, user_id: UserId, room_id: RoomId) -> MatrixError | None:
    """Reject an invite, or take back a knock, of a room that this server does not follow."""
    try:
        await others.leave(user_id, room_id, {"membership": "leave"})
    except MatrixError as error:
        if error.status == 503:
            return error
        log.info("room not left", room_id=room_id, errcode=error.errcode)
    return None


def leave_command_id(departure: Departure, room: RoomToLeave) -> bytes:
    """The same for every try to end this membership; another one after another join."""
    return sha256(orjson.dumps(["depart", departure.seed.hex(), room.room_id, room.event_id])).digest()

"""Guests leave rooms that have closed themselves to them.

The debt comes from the log of rooms. A command's id is made of the guest's join: whoever repeats it gets the
outcome that is there.

Spec: C-S API §Guest Access, "Server behaviour".
"""

from hashlib import sha256

import orjson
import structlog

from services.gateway.departures import leave_room_once
from services.gateway.room_access import require_guest_access
from services.gateway.room_changes import RoomChanges
from tessera.clock import Clock
from tessera.http.errors import GuestAccessForbidden
from tessera.storage import guest_removals
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.guest_removals import GuestRemoval, JoinedGuest

SWEEP_SECONDS = 5.0
GUESTS_AT_ONCE = 100

log = structlog.get_logger(__name__)


async def run(changes: RoomChanges, clock: Clock) -> None:
    """Look every few seconds, for ever."""
    while True:
        try:
            await remove_all(changes)
        except DatabaseUnavailable:
            log.warning("rooms without guests are not readable")
        await clock.sleep(SWEEP_SECONDS)


async def remove_all(changes: RoomChanges) -> None:
    """Look at every room once that may have unwelcome guests."""
    after = ""
    while True:
        async with changes.accounts.reading() as tx:
            rooms = await guest_removals.list_removals(tx, after)
        if not rooms:
            return
        for room in rooms:
            try:
                await remove_guests(changes, room)
            except Exception:  # one room being away must not hold up the others
                log.warning("guests not removed", room_id=room.room_id, exc_info=True)
        after = rooms[-1].room_id


async def remove_guests(changes: RoomChanges, room: GuestRemoval) -> None:
    """Have this server's guests leave a room unless it lets them in again; then strike out the debt.

    Raises:
        MatrixError: the room could not be asked (503).
    """
    if not await _is_open(changes, room):
        after = ""
        while True:
            async with changes.accounts.reading() as tx:
                guests = await guest_removals.list_guests(tx, room.room_id, after, GUESTS_AT_ONCE)
            if not guests:
                break
            for guest in guests:
                error = await leave_room_once(changes, guest.user_id, room.room_id, leave_command_id(room, guest))
                if error is not None:
                    raise error
            after = guests[-1].user_id
    async with changes.accounts.transaction() as tx:
        await guest_removals.settle_removal(tx, room)


async def _is_open(changes: RoomChanges, room: GuestRemoval) -> bool:
    async with changes.shards.of_room(room.room_id).reading() as tx:
        try:
            await require_guest_access(tx, room.room_id)
        except GuestAccessForbidden:
            return False
    return True


def leave_command_id(room: GuestRemoval, guest: JoinedGuest) -> bytes:
    """The same for every try to end this stay; another one after another join."""
    return sha256(orjson.dumps(["guest", room.room_id, guest.user_id, guest.event_id])).digest()

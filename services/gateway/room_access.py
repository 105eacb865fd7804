"""Reaching a room on a user's behalf: every read of a room begins with a `require_` from here.

Members see the room as it is; who has left sees it as of the end of the stay, unless the room was
forgotten; a world-readable room is open to all.

Spec: C-S API §Room History Visibility, §Leaving rooms, §Room previews.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from matrixcore.identifiers import RoomId, UserId
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from matrixcore.visibility import Membership
from tessera.event_serving import Reader
from tessera.http.authentication import Requester
from tessera.http.errors import Forbidden, GuestAccessForbidden
from tessera.records import OrderKey
from tessera.room_visibility import MembershipHistory
from tessera.storage import user_rooms
from tessera.storage.database import Database, Transaction
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.room_reads.rooms import RoomRow, find_with_steps
from tessera.storage.room_reads.state import find_state
from tessera.storage.shards import RoomShards


@dataclass(frozen=True, slots=True)
class RoomView:
    """A room as one user may read it.

    Attributes:
        until: the last point that the user sees, for who has left; None for the present.
        peeking: not a member, now or before: the room is world-readable.
    """

    room: RoomRow
    rules: RoomVersionRules
    history: MembershipHistory
    until: OrderKey | None = None
    peeking: bool = False

    @property
    def head(self) -> OrderKey:
        """The newest point of the room that the user sees."""
        return self.until or OrderKey(self.room.last_position)

    def capped(self, key: OrderKey | None) -> OrderKey | None:
        """A point of the room's order, but none that the user does not see; None is the present."""
        if self.until is None:
            return key
        return self.until if key is None else min(key, self.until)

    def reader(self, device_id: str | None, now_ms: int) -> Reader:
        """The user as one to whom events are served."""
        return Reader(self.history.user_id, device_id, now_ms, self.history)


async def require_view(shards: RoomShards, accounts: Database, room_id: RoomId, user_id: UserId) -> RoomView:
    """The room, if the user may read it now or up to the end of an earlier stay.

    Nobody may hold a connection while calling: both stores may be one pool, and waiting for a second
    connection with the first in hand ends in a deadlock.

    Raises:
        Forbidden: also for rooms that are not known here.
    """
    async with shards.of_room(room_id).reading() as tx:
        found = await find_with_steps(tx, room_id, user_id)
        if found is None:
            raise Forbidden("You are not a member of this room")
        view = view_of(*found, user_id)
        if view.history.current is Membership.JOIN:
            return view
        is_open = await is_world_readable(tx, room_id)
    if view.history.ever_joined and not await _has_forgotten(accounts, room_id, user_id):
        return RoomView(view.room, view.rules, view.history, view.history.end_of_stay)
    if is_open:
        return RoomView(view.room, view.rules, view.history, peeking=True)
    raise Forbidden("You are not a member of this room")


async def require_joined(tx: Transaction, room_id: RoomId, user_id: UserId) -> RoomView:
    """The room, if the user is joined.

    Raises:
        Forbidden: also for rooms that are not known here.
    """
    found = await find_with_steps(tx, room_id, user_id)
    if found is not None:
        view = view_of(*found, user_id)
        if view.history.current is Membership.JOIN:
            return view
    raise Forbidden("You are not joined to this room")


def view_of(room: RoomRow, steps: Sequence[MembershipStep], user_id: UserId) -> RoomView:
    """The room as the user sees it while joined; whether the user is, the caller has to look."""
    return RoomView(room, ROOM_VERSIONS[room.room_version], MembershipHistory(user_id, steps))


async def require_guest_access(tx: Transaction, room_id: RoomId) -> None:
    """Guests may join this room now. Spec: C-S API §Guest Access.

    Raises:
        GuestAccessForbidden
    """
    event = await find_state(tx, room_id, "m.room.guest_access", "")
    if event is None or orjson.loads(event.pdu)["content"].get("guest_access") != "can_join":
        raise GuestAccessForbidden("Guests may not join this room")


def refuse_guest(requester: Requester) -> None:
    """Raise GuestAccessForbidden for what guests may not do in any room."""
    if requester.is_guest:
        raise GuestAccessForbidden


async def is_world_readable(tx: Transaction, room_id: RoomId) -> bool:
    """Whether everybody may read the room now."""
    event = await find_state(tx, room_id, "m.room.history_visibility", "")
    return event is not None and orjson.loads(event.pdu)["content"].get("history_visibility") == "world_readable"


async def _has_forgotten(accounts: Database, room_id: RoomId, user_id: UserId) -> bool:
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, user_id, room_id)
    return row is not None and row.forgotten

"""The room in which this server talks to each of its users. Spec: C-S API §Server Notices."""

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction

_FIND = "SELECT room_id FROM accounts.notice_rooms WHERE user_id = $1"

_ADD = """
INSERT INTO accounts.notice_rooms (user_id, room_id) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING RETURNING 1
"""

_IS_ONE = "SELECT EXISTS (SELECT FROM accounts.notice_rooms WHERE user_id = $1 AND room_id = $2)"


async def find_notice_room(tx: Transaction, user_id: UserId) -> RoomId | None:
    """The user's room for notices."""
    room_id: RoomId | None = await tx.fetchval(_FIND, user_id)
    return room_id


async def add_notice_room(tx: Transaction, user_id: UserId, room_id: RoomId) -> bool:
    """Remember the room; False if the user has one already."""
    return await tx.fetchval(_ADD, user_id, room_id) is not None


async def is_notice_room(tx: Transaction, user_id: UserId, room_id: RoomId) -> bool:
    """Whether this is the user's room for notices."""
    return bool(await tx.fetchval(_IS_ONE, user_id, room_id))

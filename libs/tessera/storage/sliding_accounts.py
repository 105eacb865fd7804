"""What sliding sync reads of the account store to make lists. Spec: MSC4186 §SlidingRoomFilter."""

from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction


class ListData(NamedTuple):
    """Account data that lists depend on.

    Attributes:
        direct: the content of m.direct.
        invite_permission: of m.invite_permission_config.
        tags: room -> the content of its m.tag.
    """

    direct: bytes | None
    invite_permission: bytes | None
    tags: dict[RoomId, bytes]


_LIST_DATA = """
SELECT room_id, type, content FROM accounts.account_data
WHERE user_id = $1 AND content IS NOT NULL
  AND (type = 'm.tag' AND room_id <> '' OR room_id = '' AND type IN ('m.direct', 'm.invite_permission_config'))
"""


async def find_list_data(tx: Transaction, user_id: UserId) -> ListData:
    """The user's account data that lists depend on, of all rooms."""
    whole: dict[str, bytes] = {}
    tags: dict[RoomId, bytes] = {}
    for room_id, data_type, content in await tx.fetch(_LIST_DATA, user_id):
        if room_id:
            tags[room_id] = content
        else:
            whole[data_type] = content
    return ListData(whole.get("m.direct"), whole.get("m.invite_permission_config"), tags)

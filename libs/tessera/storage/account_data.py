"""What clients keep on the server for themselves, for the user or for one of the user's rooms.

Contents are JSON objects as bytes. The caller publishes the UserWake after the COMMIT.

Spec: C-S API §Client config, §Room tagging.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind, append

GLOBAL = ""  # the room_id of data that belongs to no room
_IGNORED_USERS = "m.ignored_user_list"


class AccountData(NamedTuple):
    """One piece of account data; content None: deleted."""

    room_id: str
    type: str
    content: bytes | None
    position: int


_FIND = "SELECT content FROM accounts.account_data WHERE user_id = $1 AND room_id = $2 AND type = $3"

_SET = """
INSERT INTO accounts.account_data (user_id, room_id, type, content, position) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = EXCLUDED.content, position = EXCLUDED.position
"""

_LIST = "SELECT room_id, type, content, position FROM accounts.account_data WHERE user_id = $1"

_LIST_LIVE = f"{_LIST} AND content IS NOT NULL ORDER BY room_id, type"

_LIST_KEYS = f"{_LIST} AND (room_id, type) IN (SELECT * FROM unnest($2::text[], $3::text[]))"  # noqa: S608  constant text


async def find_content(tx: Transaction, user_id: UserId, room_id: str, data_type: str) -> bytes | None:
    """The content of one type; room_id GLOBAL for the user's own."""
    content: bytes | None = await tx.fetchval(_FIND, user_id, room_id, data_type)
    return content


async def set_content(
    tx: Transaction, user_id: UserId, room_id: str, data_type: str, content: bytes | None
) -> dict[UserId, int]:
    """Set (or with None delete) one type and tell the user's log; answers the user's new head.

    The log's head row is locked first and until the transaction ends, so that the row's positions rise.
    """
    if room_id:
        entries = [LogEntry(user_id, UserLogKind.ROOM_ACCOUNT_DATA, room_id, data_type)]
    else:
        entries = [LogEntry(user_id, UserLogKind.ACCOUNT_DATA, key=data_type)]
        if data_type == _IGNORED_USERS:
            entries.append(LogEntry(user_id, UserLogKind.IGNORED_USERS))
    heads = await append(tx, entries)
    await tx.execute(_SET, user_id, room_id, data_type, content, heads[user_id])
    return heads


async def list_all(tx: Transaction, user_id: UserId) -> list[AccountData]:
    """Everything that is not deleted, of the user and of all rooms."""
    return [AccountData(*row) for row in await tx.fetch(_LIST_LIVE, user_id)]


async def list_of_keys(tx: Transaction, user_id: UserId, keys: Sequence[tuple[str, str]]) -> list[AccountData]:
    """The rows of these (room_id, type), deleted ones too, in any order."""
    rows = await tx.fetch(_LIST_KEYS, user_id, [key[0] for key in keys], [key[1] for key in keys])
    return [AccountData(*row) for row in rows]

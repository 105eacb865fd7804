"""What users have set about rooms, of many users at once: tags, direct chats, push rules.

Spec: C-S API §Room tagging, §Direct Messaging, §Push Rules.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.account_data import GLOBAL
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind, append_returning_positions

DataKey = tuple[UserId, str, str]
"""(user, room ID or GLOBAL, type) of account data."""

# Whoever changes tags or rules locks the user's row, then the log's head, and account data the head alone.
_LOCK_USERS = "SELECT user_id FROM accounts.users WHERE user_id = ANY($1::text[]) ORDER BY user_id FOR UPDATE"
_LOCK_HEADS = "SELECT 1 FROM accounts.user_log_heads WHERE user_id = ANY($1::text[]) ORDER BY user_id FOR UPDATE"

_LIST_DATA = """
SELECT d.user_id, d.room_id, d.type, d.content
FROM unnest($1::text[], $2::text[], $3::text[]) AS w (user_id, room_id, type)
JOIN accounts.account_data d ON d.user_id = w.user_id AND d.room_id = w.room_id AND d.type = w.type
WHERE d.content IS NOT NULL
"""

_SET_DATA = """
INSERT INTO accounts.account_data (user_id, room_id, type, content, position)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[])
ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = EXCLUDED.content, position = EXCLUDED.position
"""

_LIST_RULES = "SELECT user_id, rules FROM accounts.push_rules WHERE user_id = ANY($1::text[])"

_SET_RULES = """
INSERT INTO accounts.push_rules (user_id, rules) SELECT * FROM unnest($1::text[], $2::bytea[])
ON CONFLICT (user_id) DO UPDATE SET rules = EXCLUDED.rules
"""


class RoomSettings(NamedTuple):
    """Stored documents; what is not there is left out."""

    data: dict[DataKey, bytes]
    rules: dict[UserId, bytes]


async def lock_settings(tx: Transaction, user_ids: Collection[UserId]) -> list[UserId]:
    """Hold off other changes of these users' settings until the transaction ends; those of them that exist."""
    known = [UserId(row[0]) for row in await tx.fetch(_LOCK_USERS, sorted(user_ids))]
    await tx.fetch(_LOCK_HEADS, known)
    return known


async def list_settings(tx: Transaction, user_ids: Collection[UserId], keys: Collection[DataKey]) -> RoomSettings:
    """The push rules of these users, and these pieces of account data."""
    wanted = [[key[column] for key in keys] for column in range(3)]
    data = {(UserId(row[0]), row[1], row[2]): row[3] for row in await tx.fetch(_LIST_DATA, *wanted)}
    rules = {UserId(row[0]): row[1] for row in await tx.fetch(_LIST_RULES, list(user_ids))}
    return RoomSettings(data, rules)


async def set_settings(
    tx: Transaction, data: Mapping[DataKey, bytes], rules: Mapping[UserId, bytes]
) -> dict[UserId, int]:
    """Replace these documents and tell the users' logs; answers the new heads, to be published after COMMIT."""
    entries = [_entry_of(key) for key in data] + [LogEntry(user_id, UserLogKind.PUSH_RULES) for user_id in rules]
    positions = await append_returning_positions(tx, entries)
    await _set_data(tx, data, positions[: len(data)])
    if rules:
        await tx.execute(_SET_RULES, list(rules), list(rules.values()))
    return {entry.user_id: position for entry, position in zip(entries, positions, strict=True)}


async def _set_data(tx: Transaction, data: Mapping[DataKey, bytes], positions: Sequence[int]) -> None:
    if data:
        columns = [[key[column] for key in data] for column in range(3)]
        await tx.execute(_SET_DATA, *columns, list(data.values()), positions)


def _entry_of(key: DataKey) -> LogEntry:
    user_id, room_id, data_type = key
    if room_id == GLOBAL:
        return LogEntry(user_id, UserLogKind.ACCOUNT_DATA, key=data_type)
    return LogEntry(user_id, UserLogKind.ROOM_ACCOUNT_DATA, room_id, data_type)

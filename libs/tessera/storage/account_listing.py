"""Accounts and rooms as administrators look through them. Spec: none; Synapse's admin API."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction


class Account(NamedTuple):
    """An account with its profile; times in milliseconds since the epoch."""

    user_id: UserId
    is_guest: bool
    is_admin: bool
    deactivated: bool
    erased: bool
    locked: bool
    suspended: bool
    user_type: str | None
    appservice_id: str | None
    created_ts: int
    displayname: str | None
    avatar_url: str | None
    last_seen_ts: int | None


class ListedRoom(NamedTuple):
    """A line of the list of rooms."""

    room_id: RoomId
    published: bool
    joined_local_members: int


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts to list; None lets all pass.

    Attributes:
        text: part of the localpart or of the display name.
        user_id: part of the ID.
    """

    text: str | None = None
    user_id: str | None = None
    guests: bool | None = None
    admins: bool | None = None
    deactivated: bool | None = None
    locked: bool | None = None


ACCOUNT_ORDERS = {
    "name": "u.user_id",
    "is_guest": "u.is_guest",
    "admin": "u.is_admin",
    "user_type": "u.user_type",
    "deactivated": "u.deactivated",
    "displayname": "p.displayname",
    "avatar_url": "p.avatar_url",
    "creation_ts": "u.created_ts",
    "last_seen_ts": "last_seen_ts",
    "locked": "u.locked",
    "suspended": "u.suspended",
}
ROOM_ORDERS = {
    "name": "lower(d.name)",
    "canonical_alias": "d.canonical_alias",
    "joined_members": "d.joined_members",
    "version": "d.room_version",
    "encryption": "d.encryption",
    "public": "d.published",
    "join_rules": "d.join_rule",
}

_ACCOUNT = """
SELECT u.user_id, u.is_guest, u.is_admin, u.deactivated, u.erased, u.locked, u.suspended, u.user_type, u.appservice_id,
       u.created_ts, p.displayname, p.avatar_url,
       (SELECT max(d.last_seen_ts) FROM accounts.devices d WHERE d.user_id = u.user_id) AS last_seen_ts
FROM accounts.users u LEFT JOIN accounts.profiles p USING (user_id)
"""

_FIND = _ACCOUNT + "WHERE u.user_id = $1"

_FILTER = """
WHERE ($1::text IS NULL OR split_part(substr(u.user_id, 2), ':', 1) ILIKE $1 OR p.displayname ILIKE $1)
AND ($2::text IS NULL OR u.user_id ILIKE $2) AND ($3::boolean IS NULL OR u.is_guest = $3)
AND ($4::boolean IS NULL OR u.is_admin = $4) AND ($5::boolean IS NULL OR u.deactivated = $5)
AND ($6::boolean IS NULL OR u.locked = $6)
"""

_COUNT = f"SELECT count(*) FROM accounts.users u LEFT JOIN accounts.profiles p USING (user_id) {_FILTER}"  # noqa: S608  constant text

_SET_USER_TYPE = "UPDATE accounts.users SET user_type = $2 WHERE user_id = $1"

_ROOMS = """
FROM accounts.room_directory d
WHERE d.position >= 0 AND ($1::text IS NULL OR d.name ILIKE $1 OR d.canonical_alias ILIKE $1 OR d.room_id = $2)
"""

_COUNT_ROOMS = f"SELECT count(*) {_ROOMS}"

_FIND_ROOM = """
SELECT $1, coalesce((SELECT published FROM accounts.room_directory WHERE room_id = $1), false), (
    SELECT count(*) FROM accounts.user_rooms r WHERE r.room_id = $1 AND r.membership = 'join'
)::integer
"""


async def find_account(tx: Transaction, user_id: UserId) -> Account | None:
    """One account, a closed one too."""
    row = await tx.fetchrow(_FIND, user_id)
    return None if row is None else Account(*row)


async def list_accounts(
    tx: Transaction, wanted: AccountFilter, *, order: str, descending: bool, limit: int, offset: int
) -> tuple[list[Account], int]:
    """A page of accounts, and how many there are on all pages.

    Args:
        order: a key of ACCOUNT_ORDERS.
    """
    values: list[Any] = [
        _pattern(wanted.text),
        _pattern(wanted.user_id),
        wanted.guests,
        wanted.admins,
        wanted.deactivated,
        wanted.locked,
    ]
    direction = "DESC NULLS LAST" if descending else "ASC NULLS FIRST"
    query = f"{_ACCOUNT} {_FILTER} ORDER BY {ACCOUNT_ORDERS[order]} {direction}, u.user_id LIMIT $7 OFFSET $8"
    rows = await tx.fetch(query, *values, limit, offset)
    return [Account(*row) for row in rows], await tx.fetchval(_COUNT, *values)


async def set_user_type(tx: Transaction, user_id: UserId, user_type: str | None) -> None:
    """What kind of user it is: support, bot, or None."""
    await tx.execute(_SET_USER_TYPE, user_id, user_type)


async def list_rooms(
    tx: Transaction, search_term: str | None, *, order: str, descending: bool, limit: int, offset: int
) -> tuple[list[ListedRoom], int]:
    """A page of the rooms that this server knows, and how many there are on all pages.

    Args:
        order: a key of ROOM_ORDERS.
    """
    values = (_pattern(search_term), search_term)
    direction = "DESC NULLS LAST" if descending else "ASC NULLS LAST"
    query = f"""
        SELECT d.room_id, d.published, (
            SELECT count(*) FROM accounts.user_rooms r WHERE r.room_id = d.room_id AND r.membership = 'join'
        )::integer {_ROOMS} ORDER BY {ROOM_ORDERS[order]} {direction}, d.room_id LIMIT $3 OFFSET $4
    """  # noqa: S608  the order is one of the constants
    rows = await tx.fetch(query, *values, limit, offset)
    return [ListedRoom(*row) for row in rows], await tx.fetchval(_COUNT_ROOMS, *values)


async def find_room(tx: Transaction, room_id: RoomId) -> ListedRoom:
    """What the account store knows of a room."""
    return ListedRoom(*await tx.fetchrow(_FIND_ROOM, room_id))


def _pattern(text: str | None) -> str | None:
    if text is None:
        return None
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"

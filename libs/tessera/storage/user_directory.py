"""The search in the user directory. Spec: C-S API §User Directory."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from matrixcore.identifiers import RoomId, UserId
from tessera.storage.database import Transaction

MAX_REMOTE = 50  # users of other servers, before it is known who of them is visible
_MAX_WORDS = 10
_SEPARATORS = str.maketrans("@:._/=+-", "        ")


class DirectoryUser(NamedTuple):
    """A user found."""

    user_id: UserId
    displayname: str | None
    avatar_url: str | None
    is_local: bool = True


class RemoteMember(NamedTuple):
    """A member of a room who belongs to another server; the PDU is the member event."""

    user_id: UserId
    pdu: bytes


# Exact and leading matches come first.
_ORDER = """
(lower({0}.displayname) = $3 OR {0}.user_id = $3 OR split_part(substr({0}.user_id, 2), ':', 1) = $3) DESC NULLS LAST,
(lower({0}.displayname) LIKE $4 OR substr({0}.user_id, 2) LIKE $4) DESC NULLS LAST,
{0}.displayname IS NULL, {0}.user_id
"""

# Visible are users who share a room with the requester or are in a room that everybody may join or read. That is
# looked at in the order of the results, until there are enough.
_LOCAL = f"""
SELECT p.user_id, p.displayname, p.avatar_url, true
FROM (
    SELECT f.user_id, f.displayname, f.avatar_url
    FROM accounts.profiles f JOIN accounts.users u ON u.user_id = f.user_id
        AND NOT u.deactivated AND NOT u.is_guest AND (NOT u.locked OR $7)
    WHERE f.words @@ to_tsquery('simple', $2) AND f.user_id <> $1
    ORDER BY {_ORDER.format("f")} OFFSET 0
) p
WHERE {{visible}}
LIMIT $5
"""  # noqa: S608  constant text
_VISIBLE = """EXISTS (
    SELECT 1 FROM accounts.user_rooms r
    WHERE r.user_id = p.user_id AND r.membership = 'join' AND (
        EXISTS (
            SELECT 1 FROM accounts.user_rooms own
            WHERE own.user_id = $1 AND own.room_id = r.room_id AND own.membership = 'join'
        ) OR EXISTS (
            SELECT 1 FROM accounts.room_directory d
            WHERE d.room_id = r.room_id AND (d.join_rule = 'public' OR d.world_readable)
        )
    )
)"""
_SEARCH = """
({local})
UNION ALL
(
    SELECT f.user_id, f.displayname, f.avatar_url, false FROM accounts.remote_users f
    WHERE f.words @@ to_tsquery('simple', $2)
    ORDER BY {order} LIMIT $6
)
"""
_SEARCHES = {
    all_users: _SEARCH.format(local=_LOCAL.format(visible="true" if all_users else _VISIBLE), order=_ORDER.format("f"))
    for all_users in (True, False)
}

_LIST_OPEN = """
SELECT w.room_id FROM unnest($2::text[]) AS w (room_id)
WHERE EXISTS (
    SELECT FROM accounts.user_rooms own
    WHERE own.user_id = $1 AND own.room_id = w.room_id AND own.membership = 'join'
) OR EXISTS (
    SELECT FROM accounts.room_directory d WHERE d.room_id = w.room_id AND (d.join_rule = 'public' OR d.world_readable)
)
"""

_SET_REMOTE = """
INSERT INTO accounts.remote_users AS r (user_id, displayname, avatar_url, search_text)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
ON CONFLICT (user_id) DO UPDATE SET displayname = EXCLUDED.displayname, avatar_url = EXCLUDED.avatar_url,
    search_text = EXCLUDED.search_text
WHERE (r.displayname, r.avatar_url) IS DISTINCT FROM (EXCLUDED.displayname, EXCLUDED.avatar_url)
"""

# Of a room shard.
_LIST_REMOTE_MEMBERS = """
SELECT s.state_key, e.pdu FROM rooms.current_state s
JOIN rooms.events e ON e.room_id = s.room_id AND e.event_id = s.event_id
WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.state_key > $2 AND s.membership = 'join'
  AND s.state_key NOT LIKE '@%:' || $3
ORDER BY s.state_key LIMIT $4
"""


def search_text_of(user_id: UserId, displayname: str | None) -> str:
    """The text by which a user is found, in small letters of every alphabet."""
    return f"{user_id} {displayname or ''}".lower().replace("\0", " ")


async def search_users(
    tx: Transaction,
    requester: UserId,
    search_term: str,
    *,
    limit: int,
    all_users: bool = False,
    locked_users: bool = False,
    remote_users: bool = True,
) -> list[DirectoryUser]:
    """Users whose ID or display name has words that begin with each of the term's.

    First the local ones whom the requester may see, best first; then at most MAX_REMOTE of other servers, of whom that
    is still to be found out.

    Args:
        all_users: every local user is visible, as the operator chose.
        locked_users: those too.
    """
    term = search_term.strip().lower().replace("\0", "")
    words = term.translate(_SEPARATORS).split()[:_MAX_WORDS]
    if not words:
        return []
    query = " & ".join(f"'{_quote(word)}':*" for word in words)
    rows = await tx.fetch(
        _SEARCHES[all_users],
        requester,
        query,
        term,
        f"{_escape(term)}%",
        limit,
        MAX_REMOTE if remote_users else 0,
        locked_users,
    )
    return [DirectoryUser(*row) for row in rows]


async def list_open_rooms(tx: Transaction, requester: UserId, room_ids: Collection[RoomId]) -> set[RoomId]:
    """Those of the rooms whose members the requester may see: the own ones, and what all may join or read."""
    return {RoomId(row[0]) for row in await tx.fetch(_LIST_OPEN, requester, list(room_ids))}


async def set_remote_users(tx: Transaction, users: Sequence[DirectoryUser]) -> None:
    """Note how users of other servers are called; of several entries of a user the last one counts."""
    newest = {user.user_id: user for user in users}
    rows = [newest[user_id] for user_id in sorted(newest)]
    await tx.execute(
        _SET_REMOTE,
        [row.user_id for row in rows],
        [row.displayname for row in rows],
        [row.avatar_url for row in rows],
        [search_text_of(row.user_id, row.displayname) for row in rows],
    )


async def list_remote_members(
    tx: Transaction, room_id: RoomId, server_name: str, after: str, limit: int
) -> list[RemoteMember]:
    """The next joined members of a room who are not of this server, by user ID; of a room shard."""
    rows = await tx.fetch(_LIST_REMOTE_MEMBERS, room_id, after, server_name, limit)
    return [RemoteMember(*row) for row in rows]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "''")

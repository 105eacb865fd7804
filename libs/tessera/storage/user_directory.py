"""The search in the user directory. Spec: C-S API §User Directory."""

from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class DirectoryUser(NamedTuple):
    """A user found."""

    user_id: UserId
    displayname: str | None
    avatar_url: str | None


# Visible are users who share a room with the requester or are in a room that everybody may join or read.
# $2 narrows by the columns of one row before the memberships are looked at. Exact and leading matches
# come first.
_SEARCH = """
SELECT p.user_id, p.displayname, p.avatar_url
FROM accounts.profiles p JOIN accounts.users u ON u.user_id = p.user_id AND NOT u.deactivated AND NOT u.is_guest
WHERE p.search_text LIKE ALL ($2::text[]) AND p.user_id <> $1 AND ($6 OR EXISTS (
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
))
ORDER BY (lower(p.displayname) = $3 OR p.user_id = $3 OR split_part(substr(p.user_id, 2), ':', 1) = $3) DESC NULLS LAST,
         (lower(p.displayname) LIKE $4 OR substr(p.user_id, 2) LIKE $4) DESC NULLS LAST,
         p.displayname IS NULL, p.user_id
LIMIT $5
"""

_MAX_WORDS = 10


async def search_users(
    tx: Transaction, requester: UserId, search_term: str, *, limit: int, all_users: bool = False
) -> list[DirectoryUser]:
    """Local users that the requester may see and whose ID or display name has every word of the term, best first.

    Args:
        all_users: every local user is visible, as the operator chose.
    """
    term = search_term.strip().lower()
    words = term.split()[:_MAX_WORDS]
    if not words:
        return []
    patterns = [f"%{_escape(word)}%" for word in words]
    rows = await tx.fetch(_SEARCH, requester, patterns, term, f"{_escape(term)}%", limit, all_users)
    return [DirectoryUser(*row) for row in rows]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")

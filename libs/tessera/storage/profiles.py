"""Profiles of local users. Spec: C-S API §Profiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction
from tessera.storage.user_directory import search_text_of


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile; custom is a JSON object of all fields but the two named here, or None."""

    displayname: str | None
    avatar_url: str | None
    custom: bytes | None


class ProfileDebt(NamedTuple):
    """A user whose rooms have not yet heard of the newest name or avatar."""

    user_id: UserId
    revision: int


_LIST = "SELECT user_id, displayname, avatar_url, custom FROM accounts.profiles WHERE user_id = ANY($1::text[])"

_LOCK = "SELECT displayname, avatar_url, custom FROM accounts.profiles WHERE user_id = $1 FOR UPDATE"

_SET = """
UPDATE accounts.profiles
SET displayname = $2, avatar_url = $3, custom = $4, search_text = $5
WHERE user_id = $1
"""

_ADD_DEBT = """
INSERT INTO accounts.profile_debts AS d (user_id, revision) VALUES ($1, 1)
ON CONFLICT (user_id) DO UPDATE SET revision = d.revision + 1
RETURNING revision
"""

_LIST_DEBTS = "SELECT user_id, revision FROM accounts.profile_debts WHERE user_id > $1 ORDER BY user_id LIMIT $2"

_SETTLE = "DELETE FROM accounts.profile_debts WHERE user_id = $1 AND revision = $2"


async def list_profiles(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, Profile]:
    """The profiles of those of these users that are local."""
    rows = await tx.fetch(_LIST, list(user_ids))
    return {UserId(row[0]): Profile(row[1], row[2], row[3]) for row in rows}


async def lock_profile(tx: Transaction, user_id: UserId) -> Profile | None:
    """The profile, locked until the transaction ends."""
    row = await tx.fetchrow(_LOCK, user_id)
    return None if row is None else Profile(*row)


async def set_profile(tx: Transaction, user_id: UserId, profile: Profile) -> None:
    """Replace the whole profile."""
    text = search_text_of(user_id, profile.displayname)
    await tx.execute(_SET, user_id, profile.displayname, profile.avatar_url, profile.custom, text)


async def add_debt(tx: Transaction, user_id: UserId) -> int:
    """The user's rooms are owed the new name or avatar; answers the revision to settle."""
    revision: int = await tx.fetchval(_ADD_DEBT, user_id)
    return revision


async def list_debts(tx: Transaction, after: str = "", limit: int = 100) -> list[ProfileDebt]:
    """Users whose rooms are still owed a change, in the order of their IDs, after `after`."""
    return [ProfileDebt(*row) for row in await tx.fetch(_LIST_DEBTS, after, limit)]


async def settle_debt(tx: Transaction, user_id: UserId, revision: int) -> None:
    """All rooms have heard of this revision; nothing happens if a newer one is owed."""
    await tx.execute(_SETTLE, user_id, revision)

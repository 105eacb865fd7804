"""Accounts of local users. Spec: C-S API §Account registration, §Account deactivation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction
from tessera.storage.erased_users import add_erasure
from tessera.storage.user_directory import search_text_of


@dataclass(frozen=True, slots=True)
class User:
    """An account; password_hash is None where nobody can log in by password (guests, deactivated)."""

    user_id: UserId
    password_hash: str | None
    is_guest: bool
    is_admin: bool
    deactivated: bool
    locked: bool = False
    suspended: bool = False


# The profile and the head of the user log are there from the first moment, so that no later
# statement has to wonder.
_ADD = """
WITH made AS (
    INSERT INTO accounts.users (user_id, password_hash, is_guest, is_admin, created_ts)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (user_id) DO NOTHING RETURNING user_id
), profile AS (
    INSERT INTO accounts.profiles (user_id, displayname, search_text)
    SELECT user_id, $6, $7 FROM made
), head AS (
    INSERT INTO accounts.user_log_heads (user_id, head) SELECT user_id, 0 FROM made ON CONFLICT DO NOTHING
)
SELECT 1 FROM made
"""

_FIND = """
SELECT user_id, password_hash, is_guest, is_admin, deactivated, locked, suspended
FROM accounts.users WHERE user_id = $1
"""

_EXISTS = "SELECT EXISTS (SELECT 1 FROM accounts.users WHERE user_id = $1)"

_LIST_EXISTING = "SELECT user_id FROM accounts.users WHERE user_id = ANY($1::text[]) AND NOT deactivated"

_LIST_TAKEN = "SELECT user_id FROM accounts.users WHERE user_id = ANY($1::text[])"

_LOCK = "SELECT 1 FROM accounts.users WHERE user_id = $1 FOR UPDATE"

_SET_PASSWORD = "UPDATE accounts.users SET password_hash = $2 WHERE user_id = $1"  # noqa: S105  a query

_REPLACE_PASSWORD = "UPDATE accounts.users SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2"  # noqa: S105

_SET_ADMIN = "UPDATE accounts.users SET is_admin = $2 WHERE user_id = $1"

_SET_MARKS = {
    "locked": "UPDATE accounts.users SET locked = $2 WHERE user_id = $1",
    "suspended": "UPDATE accounts.users SET suspended = $2 WHERE user_id = $1",
}

_DEACTIVATE = """
UPDATE accounts.users SET deactivated = true, password_hash = NULL, erased = erased OR $2
WHERE user_id = $1 AND NOT deactivated RETURNING 1
"""

# Everything that is the user's own and no event; the row of the user stays, so that the name is never given again.
_ERASE = """
WITH account_data AS (DELETE FROM accounts.account_data WHERE user_id = $1),
filters AS (DELETE FROM accounts.filters WHERE user_id = $1),
rules AS (DELETE FROM accounts.push_rules WHERE user_id = $1),
presence AS (DELETE FROM accounts.presence WHERE user_id = $1)
DELETE FROM accounts.read_positions WHERE user_id = $1
"""

_ADD_CONSENTS = """
INSERT INTO accounts.policy_consents (user_id, policy, version, accepted_ts)
SELECT $1, policy, version, $4 FROM unnest($2::text[], $3::text[]) AS accepted (policy, version)
ON CONFLICT DO NOTHING
"""

_ADD_NONCE = """
WITH swept AS (DELETE FROM accounts.registration_nonces WHERE expires_ts <= $3)
INSERT INTO accounts.registration_nonces (nonce, expires_ts) VALUES ($1, $2)
"""

_TAKE_NONCE = "DELETE FROM accounts.registration_nonces WHERE nonce = $1 AND expires_ts > $2 RETURNING 1"


async def add_user(
    tx: Transaction,
    user_id: UserId,
    *,
    password_hash: str | None,
    displayname: str | None,
    is_guest: bool = False,
    is_admin: bool = False,
    now_ms: int,
) -> bool:
    """Create an account with its profile; False if the name is taken, by a deactivated account too."""
    text = search_text_of(user_id, displayname)
    made = await tx.fetchval(_ADD, user_id, password_hash, is_guest, is_admin, now_ms, displayname, text)
    return made is not None


async def find_user(tx: Transaction, user_id: UserId) -> User | None:
    """The account of a user."""
    row = await tx.fetchrow(_FIND, user_id)
    return None if row is None else User(*row)


async def user_exists(tx: Transaction, user_id: UserId) -> bool:
    """Whether the name is taken, by a deactivated account too."""
    exists: bool = await tx.fetchval(_EXISTS, user_id)
    return exists


async def list_existing(tx: Transaction, user_ids: list[UserId]) -> set[UserId]:
    """Those of these users that have an account; deactivated ones are as good as gone."""
    return {UserId(row[0]) for row in await tx.fetch(_LIST_EXISTING, user_ids)}


async def list_taken(tx: Transaction, user_ids: list[UserId]) -> set[UserId]:
    """Those of these names that are taken, by deactivated accounts too."""
    return {UserId(row[0]) for row in await tx.fetch(_LIST_TAKEN, user_ids)}


async def lock_user(tx: Transaction, user_id: UserId) -> None:
    """Hold off other changes of the user's settings until the transaction ends."""
    await tx.execute(_LOCK, user_id)


async def set_password_hash(tx: Transaction, user_id: UserId, password_hash: str) -> None:
    """Replace the password."""
    await tx.execute(_SET_PASSWORD, user_id, password_hash)


async def replace_password_hash(tx: Transaction, user_id: UserId, old: str, new: str) -> None:
    """Store the same password's hash of a better make, unless the password was changed meanwhile."""
    await tx.execute(_REPLACE_PASSWORD, user_id, old, new)


async def set_admin(tx: Transaction, user_id: UserId, is_admin: bool) -> None:
    """Give or take the rights of a server administrator."""
    await tx.execute(_SET_ADMIN, user_id, is_admin)


async def set_mark(tx: Transaction, user_id: UserId, mark: Literal["locked", "suspended"], value: bool) -> None:
    """Lock or suspend an account, or take that back."""
    await tx.execute(_SET_MARKS[mark], user_id, value)


async def deactivate(tx: Transaction, user_id: UserId, *, erase: bool) -> bool:
    """Close an account for ever; False if it was closed before. Sessions are deleted by the caller."""
    closed = await tx.fetchval(_DEACTIVATE, user_id, erase) is not None
    if closed and erase:
        await tx.execute(_ERASE, user_id)
        await add_erasure(tx, user_id)
    return closed


async def add_consents(tx: Transaction, user_id: UserId, versions: Mapping[str, str], *, now_ms: int) -> None:
    """Keep which version of which document a user accepted, and when."""
    await tx.execute(_ADD_CONSENTS, user_id, list(versions), list(versions.values()), now_ms)


async def add_registration_nonce(tx: Transaction, nonce: str, *, expires_ts: int, now_ms: int) -> None:
    """Remember a nonce of the shared-secret registration; sweeps the expired ones."""
    await tx.execute(_ADD_NONCE, nonce, expires_ts, now_ms)


async def take_registration_nonce(tx: Transaction, nonce: str, *, now_ms: int) -> bool:
    """Use a nonce up; False if it is unknown, used or expired."""
    return await tx.fetchval(_TAKE_NONCE, nonce, now_ms) is not None

"""Addresses of accounts, and how they are proven. Spec: C-S API §Adding Account Administrative Contact Information.

A validation is found by its ID and the secret that its client chose; only hashes of the tokens in mails are kept.
"""

import hmac
from hashlib import sha256
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

MAX_TOKENS = 10  # mails of one validation whose links still work
VALIDATED_LIFETIME_MS = 24 * 3_600_000


class Threepid(NamedTuple):
    """An address of an account; times in milliseconds since the epoch."""

    medium: str
    address: str
    validated_ts: int
    added_ts: int


class Validation(NamedTuple):
    """An address that is being proven, or has been."""

    session_id: str
    purpose: str
    medium: str
    address: str
    client_secret: str
    next_link: str | None
    token_hashes: list[bytes]
    validated_ts: int | None

    def is_token(self, token: str) -> bool:
        """Whether a mail of this validation carried the token."""
        wanted = hash_validation_token(token)
        return any(hmac.compare_digest(wanted, one) for one in self.token_hashes)


_FIND_OWNER = """
SELECT t.user_id FROM accounts.threepids t JOIN accounts.users u USING (user_id)
WHERE t.medium = $1 AND t.address = $2 AND NOT u.deactivated
"""

_LIST = "SELECT medium, address, validated_ts, added_ts FROM accounts.threepids WHERE user_id = $1 ORDER BY added_ts"

# Added anew by the same user it is proven anew; somebody else's stays theirs.
_ADD = """
INSERT INTO accounts.threepids (medium, address, user_id, validated_ts, added_ts) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (medium, address) DO UPDATE SET validated_ts = EXCLUDED.validated_ts
WHERE accounts.threepids.user_id = EXCLUDED.user_id
RETURNING 1
"""

# Mails about messages go to nobody's address but the user's own.
_DELETE = """
WITH pushers AS (DELETE FROM accounts.pushers WHERE user_id = $3 AND kind = $1 AND pushkey = $2)
DELETE FROM accounts.threepids WHERE medium = $1 AND address = $2 AND user_id = $3 RETURNING 1
"""

_DELETE_ALL = "DELETE FROM accounts.threepids WHERE user_id = $1"

_ADD_BINDING = """
INSERT INTO accounts.bound_threepids (user_id, medium, address, id_server) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING
"""

_LIST_BINDINGS = """
SELECT id_server FROM accounts.bound_threepids WHERE user_id = $1 AND medium = $2 AND address = $3 ORDER BY id_server
"""

_LIST_ALL_BINDINGS = "SELECT medium, address, id_server FROM accounts.bound_threepids WHERE user_id = $1 LIMIT 100"

_DELETE_BINDING = """
DELETE FROM accounts.bound_threepids WHERE user_id = $1 AND medium = $2 AND address = $3 AND id_server = $4
"""

# The sweep is bounded, so that one request does not pay for all.
_SWEEP = """
DELETE FROM accounts.threepid_validations WHERE session_id IN (
    SELECT session_id FROM accounts.threepid_validations WHERE expires_ts <= $1 LIMIT 100 FOR UPDATE SKIP LOCKED
) OR (purpose = $2 AND medium = $3 AND address = $4 AND client_secret = $5 AND expires_ts <= $1)
"""

_BEGIN = """
INSERT INTO accounts.threepid_validations AS v
    (session_id, purpose, medium, address, client_secret, send_attempt, next_link, token_hashes, expires_ts)
VALUES ($1, $2, $3, $4, $5, $6, $7, ARRAY[$8::bytea], $9)
ON CONFLICT (purpose, medium, address, client_secret) DO UPDATE SET
    send_attempt = EXCLUDED.send_attempt, next_link = EXCLUDED.next_link,
    token_hashes = v.token_hashes || EXCLUDED.token_hashes,
    expires_ts = greatest(v.expires_ts, EXCLUDED.expires_ts)
WHERE v.send_attempt < EXCLUDED.send_attempt AND cardinality(v.token_hashes) < $10
RETURNING session_id
"""

_FIND_OPEN = """
SELECT session_id FROM accounts.threepid_validations
WHERE purpose = $1 AND medium = $2 AND address = $3 AND client_secret = $4
"""

_FIND = """
SELECT session_id, purpose, medium, address, client_secret, next_link, token_hashes, validated_ts
FROM accounts.threepid_validations WHERE session_id = $1 AND expires_ts > $2
"""

_VALIDATE = """
UPDATE accounts.threepid_validations
SET validated_ts = coalesce(validated_ts, $2), expires_ts = greatest(expires_ts, $3)
WHERE session_id = $1
"""

_END = "DELETE FROM accounts.threepid_validations WHERE session_id = $1"


def hash_validation_token(token: str) -> bytes:
    """What is stored of a token that a mail carries."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


async def find_owner(tx: Transaction, medium: str, address: str) -> UserId | None:
    """Whose address it is; that of a closed account is nobody's."""
    owner = await tx.fetchval(_FIND_OWNER, medium, address)
    return None if owner is None else UserId(owner)


async def list_threepids(tx: Transaction, user_id: UserId) -> list[Threepid]:
    """The addresses of an account, the oldest first."""
    return [Threepid(*row) for row in await tx.fetch(_LIST, user_id)]


async def add_threepid(
    tx: Transaction, user_id: UserId, medium: str, address: str, *, validated_ts: int, now_ms: int
) -> bool:
    """Add a proven address to an account; False if it is another account's."""
    return await tx.fetchval(_ADD, medium, address, user_id, validated_ts, now_ms) is not None


async def delete_threepid(tx: Transaction, user_id: UserId, medium: str, address: str) -> bool:
    """Take an address from an account; False if it has no such."""
    return await tx.fetchval(_DELETE, medium, address, user_id) is not None


async def delete_threepids(tx: Transaction, user_id: UserId) -> None:
    """Take all addresses from an account."""
    await tx.execute(_DELETE_ALL, user_id)


async def add_binding(tx: Transaction, user_id: UserId, medium: str, address: str, id_server: str) -> None:
    """An identity server was told whose address it is. Repeatable."""
    await tx.execute(_ADD_BINDING, user_id, medium, address, id_server)


async def list_bindings(tx: Transaction, user_id: UserId, medium: str, address: str) -> list[str]:
    """The identity servers that were told of an address."""
    return [row[0] for row in await tx.fetch(_LIST_BINDINGS, user_id, medium, address)]


async def list_all_bindings(tx: Transaction, user_id: UserId) -> list[tuple[str, str, str]]:
    """(medium, address, identity server) of what identity servers were told of a user."""
    return [(row[0], row[1], row[2]) for row in await tx.fetch(_LIST_ALL_BINDINGS, user_id)]


async def delete_binding(tx: Transaction, user_id: UserId, medium: str, address: str, id_server: str) -> None:
    """The identity server has forgotten it. Repeatable."""
    await tx.execute(_DELETE_BINDING, user_id, medium, address, id_server)


async def begin_validation(
    tx: Transaction, validation: Validation, send_attempt: int, *, expires_ts: int, now_ms: int
) -> tuple[str, bool]:
    """Begin or go on with a validation of one address by one client.

    Returns:
        Its ID, and whether a mail is to be sent: not for an attempt that was seen already, nor for more than
        MAX_TOKENS of them.
    """
    key = (validation.purpose, validation.medium, validation.address, validation.client_secret)
    await tx.execute(_SWEEP, now_ms, *key)
    begun = await tx.fetchval(
        _BEGIN,
        validation.session_id,
        *key,
        send_attempt,
        validation.next_link,
        validation.token_hashes[0],
        expires_ts,
        MAX_TOKENS,
    )
    if begun is not None:
        return begun, True
    return await tx.fetchval(_FIND_OPEN, *key), False


async def find_validation(tx: Transaction, session_id: str, client_secret: str, *, now_ms: int) -> Validation | None:
    """A validation that has not expired, for who knows its secret."""
    row = await tx.fetchrow(_FIND, session_id, now_ms)
    if row is None or not hmac.compare_digest(row[4].encode(), client_secret.encode("utf-8", "surrogatepass")):
        return None
    return Validation(*row)


async def set_validated(tx: Transaction, session_id: str, *, now_ms: int) -> None:
    """The address was proven; the proof is good for a day."""
    await tx.execute(_VALIDATE, session_id, now_ms, now_ms + VALIDATED_LIFETIME_MS)


async def end_validation(tx: Transaction, session_id: str) -> None:
    """The proof was used."""
    await tx.execute(_END, session_id)

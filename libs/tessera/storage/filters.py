"""Filters that clients uploaded. Spec: C-S API §Filtering."""

from hashlib import sha256

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

_FIND = "SELECT definition FROM accounts.filters WHERE user_id = $1 AND filter_id = $2"

_FIND_EQUAL = "SELECT filter_id FROM accounts.filters WHERE user_id = $1 AND digest = $2"

_ADD = """
INSERT INTO accounts.filters (user_id, filter_id, digest, definition)
SELECT $1, coalesce(max(filter_id) + 1, 0), $2, $3 FROM accounts.filters WHERE user_id = $1
ON CONFLICT DO NOTHING RETURNING filter_id
"""

_MAX_ID = (1 << 63) - 1


async def add_filter(tx: Transaction, user_id: UserId, definition: bytes) -> str:
    """Store a filter, the bytes of a JSON object; equal bytes get the same ID again."""
    digest = sha256(definition).digest()
    while True:
        found: int | None = await tx.fetchval(_FIND_EQUAL, user_id, digest)
        if found is None:
            # None again if another request took the number or stored the same filter meanwhile.
            found = await tx.fetchval(_ADD, user_id, digest, definition)
        if found is not None:
            return str(found)


async def find_filter(tx: Transaction, user_id: UserId, filter_id: str) -> bytes | None:
    """The definition of a filter; None for IDs that were never given, whatever they look like."""
    if not filter_id.isascii() or not filter_id.isdigit() or len(filter_id) > 19 or int(filter_id) > _MAX_ID:
        return None
    definition: bytes | None = await tx.fetchval(_FIND, user_id, int(filter_id))
    return definition

"""Small texts that two devices pass to and fro for a minute. PostgreSQL's clock says when it is over. Spec: MSC4108."""

from datetime import datetime
from typing import NamedTuple

from tessera.storage.database import Transaction

LIVES_SECONDS = 60
MOST_CHANGES = 100  # of one; a login takes about ten
SWEEP = 16  # of those that are over, with each new one


class Rendezvous(NamedTuple):
    """One meeting place; its version rises with each text that is put there."""

    content: bytes
    version: int
    changed_at: datetime
    expires_at: datetime


_COLUMNS = "content, version, changed_at, expires_at"

_ADD = f"""
WITH swept AS (
    DELETE FROM accounts.rendezvous WHERE rendezvous_id = ANY(ARRAY(
        SELECT rendezvous_id FROM accounts.rendezvous WHERE expires_at <= now()
        ORDER BY expires_at LIMIT {SWEEP} FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.rendezvous (rendezvous_id, content, expires_at)
SELECT $1, $2, now() + interval '{LIVES_SECONDS} seconds'
WHERE (SELECT count(*) FROM accounts.rendezvous WHERE expires_at > now()) < $3
RETURNING {_COLUMNS}
"""  # noqa: S608  constant text

_FIND = f"SELECT {_COLUMNS} FROM accounts.rendezvous WHERE rendezvous_id = $1 AND expires_at > now()"  # noqa: S608  constant text

_REPLACE = f"""
UPDATE accounts.rendezvous SET content = $3, version = version + 1, changed_at = now()
WHERE rendezvous_id = $1 AND version = $2 AND version < {MOST_CHANGES} AND expires_at > now() RETURNING {_COLUMNS}
"""  # noqa: S608  constant text

_DELETE = "DELETE FROM accounts.rendezvous WHERE rendezvous_id = $1 RETURNING expires_at > now()"


async def add_rendezvous(tx: Transaction, rendezvous_id: str, content: bytes, *, most: int) -> Rendezvous | None:
    """Open a meeting place; None if there are `most` already."""
    row = await tx.fetchrow(_ADD, rendezvous_id, content, most)
    return None if row is None else Rendezvous(*row)


async def find_rendezvous(tx: Transaction, rendezvous_id: str) -> Rendezvous | None:
    """What lies there; None if it is over."""
    row = await tx.fetchrow(_FIND, rendezvous_id)
    return None if row is None else Rendezvous(*row)


async def replace_content(tx: Transaction, rendezvous_id: str, version: int, content: bytes) -> Rendezvous | None:
    """Put another text there; None if it is over, changed too often, or the version is another one meanwhile."""
    row = await tx.fetchrow(_REPLACE, rendezvous_id, version, content)
    return None if row is None else Rendezvous(*row)


async def delete_rendezvous(tx: Transaction, rendezvous_id: str) -> bool:
    """End it; whether it was still on."""
    return bool(await tx.fetchval(_DELETE, rendezvous_id))

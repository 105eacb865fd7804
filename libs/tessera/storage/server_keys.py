"""Public keys of servers, and their key documents. Spec: S-S API §Retrieving server keys."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import ServerName
from matrixcore.server_keys import ServerKey
from tessera.storage.database import Transaction

# Of one server; the keys that were valid for longest stay.
MAX_KEYS = 500


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A key document.

    Attributes:
        document: canonical JSON as the server signed it.
        fetched_ts: when it came, in milliseconds since the epoch.
    """

    document: bytes
    valid_until_ts: int
    fetched_ts: int


_LIST = """
SELECT server_name, key_id, public_key, valid_until_ts, is_old
FROM accounts.server_keys WHERE server_name = ANY($1::text[])
"""

# A key that its server has given up stays so unless the server itself takes it up again.
_PUT = """
INSERT INTO accounts.server_keys AS k (server_name, key_id, public_key, valid_until_ts, is_old)
SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::bool[])
ON CONFLICT (server_name, key_id) DO UPDATE SET
    public_key = excluded.public_key, valid_until_ts = excluded.valid_until_ts, is_old = excluded.is_old
WHERE k.public_key <> excluded.public_key OR k.is_old <> excluded.is_old OR excluded.is_old
    OR k.valid_until_ts < excluded.valid_until_ts
"""

_TRIM = """
DELETE FROM accounts.server_keys AS k USING (
    SELECT server_name, key_id,
        row_number() OVER (PARTITION BY server_name ORDER BY valid_until_ts DESC, key_id) AS place
    FROM accounts.server_keys WHERE server_name = ANY($1::text[])
) AS ranked
WHERE ranked.place > $2 AND k.server_name = ranked.server_name AND k.key_id = ranked.key_id
"""

_PUT_DOCUMENTS = """
INSERT INTO accounts.server_key_documents AS d (server_name, document, valid_until_ts, fetched_ts)
SELECT * FROM unnest($1::text[], $2::bytea[], $3::bigint[], $4::bigint[])
ON CONFLICT (server_name) DO UPDATE SET
    document = excluded.document, valid_until_ts = excluded.valid_until_ts, fetched_ts = excluded.fetched_ts
WHERE d.valid_until_ts <= excluded.valid_until_ts
"""

_LIST_DOCUMENTS = """
SELECT server_name, document, valid_until_ts, fetched_ts
FROM accounts.server_key_documents WHERE server_name = ANY($1::text[])
"""


async def list_server_keys(tx: Transaction, servers: Sequence[ServerName]) -> dict[ServerName, dict[str, ServerKey]]:
    """All known keys of these servers, by key ID; servers without any are missing."""
    found: dict[ServerName, dict[str, ServerKey]] = {}
    for server, key_id, public_key, valid_until_ts, is_old in await tx.fetch(_LIST, list(servers)):
        found.setdefault(ServerName(server), {})[key_id] = ServerKey(public_key, valid_until_ts, is_old)
    return found


async def set_server_keys(tx: Transaction, keys: Mapping[ServerName, Mapping[str, ServerKey]]) -> None:
    """Add keys, or renew them; a current key is never valid for less long than was known."""
    rows = sorted((server, key_id, key) for server, its in keys.items() for key_id, key in its.items())
    if not rows:
        return
    await tx.execute(
        _PUT,
        [server for server, _, _ in rows],
        [key_id for _, key_id, _ in rows],
        [key.public_key for _, _, key in rows],
        [key.valid_until_ts for _, _, key in rows],
        [key.is_old for _, _, key in rows],
    )
    await tx.execute(_TRIM, sorted(keys), MAX_KEYS)


async def set_key_documents(tx: Transaction, documents: Mapping[ServerName, StoredDocument]) -> None:
    """Keep the newest document of each server."""
    rows = sorted(documents.items(), key=lambda item: item[0])
    await tx.execute(
        _PUT_DOCUMENTS,
        [server for server, _ in rows],
        [one.document for _, one in rows],
        [one.valid_until_ts for _, one in rows],
        [one.fetched_ts for _, one in rows],
    )


async def list_key_documents(tx: Transaction, servers: Iterable[ServerName]) -> dict[ServerName, StoredDocument]:
    """The documents of those of these servers that are known."""
    rows = await tx.fetch(_LIST_DOCUMENTS, list(servers))
    return {ServerName(row[0]): StoredDocument(row[1], row[2], row[3]) for row in rows}

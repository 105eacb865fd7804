"""Who our users are at providers of identities. Spec: none; Synapse's user_external_ids."""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


class ExternalIdentity(NamedTuple):
    """A person at a provider; the ID is the provider's, and never given to somebody else."""

    auth_provider: str
    external_id: str


_FIND_USER = "SELECT user_id FROM accounts.external_identities WHERE auth_provider = $1 AND external_id = $2"

_ADD = """
INSERT INTO accounts.external_identities (auth_provider, external_id, user_id) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING 1
"""

_LIST = """
SELECT auth_provider, external_id FROM accounts.external_identities WHERE user_id = $1
ORDER BY auth_provider, external_id
"""

_DELETE_OTHERS = """
DELETE FROM accounts.external_identities e WHERE user_id = $1 AND NOT EXISTS (
    SELECT 1 FROM unnest($2::text[], $3::text[]) AS kept (auth_provider, external_id)
    WHERE kept.auth_provider = e.auth_provider AND kept.external_id = e.external_id
)
"""

_ADD_ALL = """
INSERT INTO accounts.external_identities (auth_provider, external_id, user_id)
SELECT auth_provider, external_id, $1 FROM unnest($2::text[], $3::text[]) AS given (auth_provider, external_id)
ON CONFLICT DO NOTHING
"""

_COUNT = """
SELECT count(*) FROM accounts.external_identities e
JOIN unnest($2::text[], $3::text[]) AS given (auth_provider, external_id) USING (auth_provider, external_id)
WHERE e.user_id = $1
"""


async def find_user(tx: Transaction, identity: ExternalIdentity) -> UserId | None:
    """Whose identity it is, a closed account's too."""
    user_id = await tx.fetchval(_FIND_USER, *identity)
    return None if user_id is None else UserId(user_id)


async def add_identity(tx: Transaction, user_id: UserId, identity: ExternalIdentity) -> bool:
    """Let a user sign in by an identity; False if it is somebody's already."""
    return await tx.fetchval(_ADD, *identity, user_id) is not None


async def list_identities(tx: Transaction, user_id: UserId) -> list[ExternalIdentity]:
    """All identities of a user."""
    return [ExternalIdentity(*row) for row in await tx.fetch(_LIST, user_id)]


async def set_identities(tx: Transaction, user_id: UserId, identities: Sequence[ExternalIdentity]) -> bool:
    """Give a user these identities and no others; False if one is somebody else's: then roll back."""
    wanted = set(identities)
    providers, ids = [one.auth_provider for one in wanted], [one.external_id for one in wanted]
    await tx.execute(_DELETE_OTHERS, user_id, providers, ids)
    await tx.execute(_ADD_ALL, user_id, providers, ids)
    count: int = await tx.fetchval(_COUNT, user_id, providers, ids)
    return count == len(wanted)

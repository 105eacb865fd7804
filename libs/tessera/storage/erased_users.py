"""Users who left and asked that who had not seen their messages shall not. Spec: C-S API §Account deactivation."""

from collections.abc import Sequence

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

_LIST = "SELECT user_id FROM accounts.users WHERE user_id = ANY($1::text[]) AND erased"


async def list_erased(tx: Transaction, user_ids: Sequence[UserId]) -> list[UserId]:
    """Those of the users who are erased."""
    return [UserId(row[0]) for row in await tx.fetch(_LIST, list(user_ids))]

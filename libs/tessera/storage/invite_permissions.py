"""Whether local users let others invite them. Spec: C-S API §Invite permission."""

from collections.abc import Sequence

import orjson

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

_LIST = """
SELECT user_id, content FROM accounts.account_data
WHERE user_id = ANY($1::text[]) AND room_id = '' AND type = 'm.invite_permission_config' AND content IS NOT NULL
"""


async def list_blocking(tx: Transaction, user_ids: Sequence[UserId]) -> list[UserId]:
    """Those of the users who block all invites."""
    rows = await tx.fetch(_LIST, list(user_ids))
    return [UserId(row[0]) for row in rows if orjson.loads(row[1]).get("default_action") == "block"]

"""What users changed about their push rules, one JSON document for each user.

The document is the gateway's and matrixcore's affair; defaults are not stored, so that a new release may add some.

Spec: C-S API §Push Rules.
"""

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind, append

_FIND = "SELECT rules FROM accounts.push_rules WHERE user_id = $1"

_LIST = "SELECT user_id, rules FROM accounts.push_rules WHERE user_id = ANY($1::text[])"

_SET = """
INSERT INTO accounts.push_rules (user_id, rules) VALUES ($1, $2)
ON CONFLICT (user_id) DO UPDATE SET rules = EXCLUDED.rules
"""

_LOCK = "SELECT 1 FROM accounts.users WHERE user_id = $1 FOR UPDATE"


async def find_rules(tx: Transaction, user_id: UserId) -> bytes | None:
    """The user's document; None if nothing was changed from the defaults."""
    rules: bytes | None = await tx.fetchval(_FIND, user_id)
    return rules


async def lock_rules(tx: Transaction, user_id: UserId) -> bytes | None:
    """The user's document, with other changes held off until the transaction ends."""
    await tx.execute(_LOCK, user_id)
    return await find_rules(tx, user_id)


async def list_rules(tx: Transaction, user_ids: list[UserId]) -> dict[UserId, bytes]:
    """The documents of those of these users who have one."""
    return {UserId(row[0]): row[1] for row in await tx.fetch(_LIST, user_ids)}


async def set_rules(tx: Transaction, user_id: UserId, rules: bytes) -> dict[UserId, int]:
    """Replace the user's document and tell the log; answers the user's new head, to be published after COMMIT."""
    await tx.execute(_SET, user_id, rules)
    return await append(tx, [LogEntry(user_id, UserLogKind.PUSH_RULES)])

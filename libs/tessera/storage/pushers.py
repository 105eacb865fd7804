"""Pushers: where a user wants notifications sent. Spec: C-S API §Receiving notifications."""

from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class Pusher:
    """One pusher; data is a JSON object. (app_id, pushkey) is unique for each user.

    Attributes:
        enabled: off, it is kept and told nothing (MSC3881).
        device_id: of the session that made it; known of stored ones.
    """

    app_id: str
    pushkey: str
    kind: str
    app_display_name: str
    device_display_name: str
    profile_tag: str | None
    lang: str
    data: bytes
    enabled: bool = True
    device_id: str = ""


_LIST = """
SELECT app_id, pushkey, kind, app_display_name, device_display_name, profile_tag, lang, data, enabled, device_id
FROM accounts.pushers WHERE user_id = $1 ORDER BY created_ts, app_id, pushkey
"""

_SET = """
INSERT INTO accounts.pushers (user_id, app_id, pushkey, device_id, kind, app_display_name, device_display_name,
                              profile_tag, lang, data, created_ts, enabled)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET enabled = EXCLUDED.enabled,
    device_id = CASE WHEN $13 THEN EXCLUDED.device_id ELSE pushers.device_id END,
    kind = EXCLUDED.kind, app_display_name = EXCLUDED.app_display_name,
    device_display_name = EXCLUDED.device_display_name, profile_tag = EXCLUDED.profile_tag, lang = EXCLUDED.lang,
    data = EXCLUDED.data
"""

# What its gateway failed at before may work now.
_TRY_AGAIN = """
UPDATE accounts.push_due SET attempts = 0, due_at = now() WHERE user_id = $1 AND app_id = $2 AND pushkey = $3
    AND attempts > 0 AND NOT claimed
"""

# What has gathered for it would come late when it is switched on.
_FORGET_QUEUE = """
WITH due AS (DELETE FROM accounts.push_due WHERE user_id = $1 AND app_id = $2 AND pushkey = $3)
DELETE FROM accounts.push_queue WHERE user_id = $1 AND app_id = $2 AND pushkey = $3
"""

_DELETE = "DELETE FROM accounts.pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3"

_DELETE_OF_OTHERS = "DELETE FROM accounts.pushers WHERE user_id <> $1 AND app_id = $2 AND pushkey = $3"

_DELETE_BUT = "DELETE FROM accounts.pushers WHERE user_id = $1 AND device_id <> $2"


async def list_pushers(tx: Transaction, user_id: UserId) -> list[Pusher]:
    """All pushers of a user, oldest first."""
    return [Pusher(*row) for row in await tx.fetch(_LIST, user_id)]


async def set_pusher(
    tx: Transaction,
    user_id: UserId,
    device_id: str,
    pusher: Pusher,
    *,
    append: bool,
    now_ms: int,
    is_switch: bool = False,
) -> None:
    """Add or replace a pusher; unless `append`, other users' pushers for the same app and key go.

    Args:
        is_switch: one session switches what may be another one's pusher, which stays that one's.
    """
    if not append:
        await tx.execute(_DELETE_OF_OTHERS, user_id, pusher.app_id, pusher.pushkey)
    await tx.execute(
        _SET,
        user_id,
        pusher.app_id,
        pusher.pushkey,
        device_id,
        pusher.kind,
        pusher.app_display_name,
        pusher.device_display_name,
        pusher.profile_tag,
        pusher.lang,
        pusher.data,
        now_ms,
        pusher.enabled,
        not is_switch,
    )
    again = _TRY_AGAIN if pusher.enabled else _FORGET_QUEUE
    await tx.execute(again, user_id, pusher.app_id, pusher.pushkey)


async def delete_pusher(tx: Transaction, user_id: UserId, app_id: str, pushkey: str) -> None:
    """Delete a pusher if it is there."""
    await tx.execute(_DELETE, user_id, app_id, pushkey)


async def delete_pushers_of_other_devices(tx: Transaction, user_id: UserId, device_id: str) -> None:
    """Delete all pushers that other devices of the user made; device_id '' for those of every device."""
    await tx.execute(_DELETE_BUT, user_id, device_id)

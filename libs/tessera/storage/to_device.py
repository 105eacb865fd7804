"""Send-to-device inboxes: each message lies at the position of its TO_DEVICE entry in the recipient's user log.

An inbox is bounded: above INBOX_LIMIT messages the oldest go. They are the ones whose sessions the device is least
likely to need still, and refusing new ones would shut a device that comes back out of every later conversation.

Spec: C-S API §Send-to-Device messaging.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.storage import user_log
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind

INBOX_LIMIT = 10_000

# Counting an inbox costs as much as it holds, so one message in so many counts; an inbox may exceed its limit by a few
# times as many messages. The factor scatters the turns, so that no rhythm of arrivals escapes them.
TRIM_TURN = 32
SCATTER = 2_654_435_761

# A client may repeat a request for so long; each new one sweeps a few of those that are older.
TRANSACTION_LIFETIME_MS = 7 * 24 * 3600 * 1000

CLAIM_TRANSACTION = """
WITH swept AS (
    DELETE FROM accounts.to_device_transactions WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM accounts.to_device_transactions
        WHERE created_ts < $6 ORDER BY created_ts LIMIT 4 FOR UPDATE SKIP LOCKED
    ))
)
INSERT INTO accounts.to_device_transactions (user_id, device_id, event_type, txn_id, created_ts)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING true
"""

DEVICES_OF_USERS = "SELECT user_id, device_id FROM accounts.devices WHERE user_id = ANY($1::text[])"

KNOWN_DEVICES = """
SELECT user_id, device_id FROM accounts.devices
JOIN (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS asked (user_id, device_id)) asked
    USING (user_id, device_id)
"""

ADD = """
INSERT INTO accounts.to_device (user_id, device_id, position, sender, type, content)
SELECT given.user_id, given.device_id, given.position, $4, $5, given.content
FROM unnest($1::text[], $2::text[], $3::bigint[], $6::bytea[]) AS given (user_id, device_id, position, content)
"""

TRIM = """
DELETE FROM accounts.to_device m USING (
    SELECT full_inbox.user_id, full_inbox.device_id, (
        SELECT kept.position FROM accounts.to_device kept
        WHERE kept.user_id = full_inbox.user_id AND kept.device_id = full_inbox.device_id
        ORDER BY kept.position DESC OFFSET $3 LIMIT 1
    ) AS up_to
    FROM unnest($1::text[], $2::text[]) AS full_inbox (user_id, device_id)
) old
WHERE m.user_id = old.user_id AND m.device_id = old.device_id AND m.position <= old.up_to
"""

LIST = """
SELECT position, sender, type, content FROM accounts.to_device
WHERE user_id = $1 AND device_id = $2 AND position > $3 AND ($4::bigint IS NULL OR position <= $4)
ORDER BY position LIMIT $5
"""

DELETE_UP_TO = "DELETE FROM accounts.to_device WHERE user_id = $1 AND device_id = $2 AND position <= $3"


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """What one device is to receive; `content` is the JSON object as bytes."""

    user_id: UserId
    device_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A waiting message; `content` is the JSON object as bytes, `position` lies in the recipient's user log."""

    position: int
    sender: UserId
    type: str
    content: bytes


async def claim_transaction(
    tx: Transaction, user_id: UserId, device_id: str, event_type: str, txn_id: str, now_ms: int
) -> bool:
    """Whether this request is the first of its kind; a concurrent twin waits here for the first one's end.

    The scope is the device and the path (event type and transaction ID). Spec: C-S API §Transaction identifiers.
    """
    expired = now_ms - TRANSACTION_LIFETIME_MS
    first = await tx.fetchval(CLAIM_TRANSACTION, user_id, device_id, event_type, txn_id, now_ms, expired)
    return first is not None


async def list_devices_of(tx: Transaction, user_ids: Sequence[UserId]) -> list[tuple[UserId, str]]:
    """All devices of these users, as (user, device)."""
    return [(row[0], row[1]) for row in await tx.fetch(DEVICES_OF_USERS, user_ids)]


async def list_known_devices(tx: Transaction, devices: Iterable[tuple[UserId, str]]) -> list[tuple[UserId, str]]:
    """Those of the (user, device) pairs that exist."""
    asked = list(devices)
    rows = await tx.fetch(KNOWN_DEVICES, [one[0] for one in asked], [one[1] for one in asked])
    return [(row[0], row[1]) for row in rows]


async def add_messages(
    tx: Transaction, sender: UserId, event_type: str, messages: Sequence[OutgoingMessage]
) -> dict[UserId, int]:
    """Put messages into inboxes and their arrival into the recipients' logs; answers each recipient's new head.

    Two statements, a third when it is an inbox's turn to be trimmed. The devices must exist.
    """
    if not messages:
        return {}
    entries = [LogEntry(one.user_id, UserLogKind.TO_DEVICE, key=one.device_id) for one in messages]
    positions = await user_log.append_returning_positions(tx, entries)
    await tx.execute(
        ADD,
        [one.user_id for one in messages],
        [one.device_id for one in messages],
        positions,
        sender,
        event_type,
        [one.content for one in messages],
    )
    turns = [one for one, position in zip(messages, positions, strict=True) if is_trim_turn(position)]
    if turns:
        await trim_inboxes(tx, [(one.user_id, one.device_id) for one in turns])
    heads: dict[UserId, int] = {}
    for one, position in zip(messages, positions, strict=True):
        heads[one.user_id] = max(position, heads.get(one.user_id, 0))
    return heads


async def trim_inboxes(tx: Transaction, devices: Sequence[tuple[UserId, str]], limit: int = INBOX_LIMIT) -> None:
    """Delete all but the newest `limit` messages of these devices."""
    await tx.execute(TRIM, [one[0] for one in devices], [one[1] for one in devices], limit)


async def list_messages(
    tx: Transaction, user_id: UserId, device_id: str, after: int, up_to: int | None = None, limit: int = 100
) -> list[StoredMessage]:
    """Messages at after < position <= up_to in order of arrival, at most `limit` of them."""
    rows = await tx.fetch(LIST, user_id, device_id, after, up_to, limit)
    return [StoredMessage(*row) for row in rows]


async def delete_up_to(tx: Transaction, user_id: UserId, device_id: str, position: int) -> None:
    """Delete what the device has confirmed by presenting a token at or after this position; safe to repeat."""
    await tx.execute(DELETE_UP_TO, user_id, device_id, position)


def is_trim_turn(position: int) -> bool:
    """Whether the message at this position makes its inbox be counted (one in TRIM_TURN)."""
    return (position * SCATTER % 2**32) * TRIM_TURN < 2**32

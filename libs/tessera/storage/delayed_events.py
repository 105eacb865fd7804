"""Events that are to be sent later. PostgreSQL's clock alone says when, so that gateways need not agree on the time.

Spec: MSC4140 (delayed events).
"""

from enum import StrEnum
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction

# How long a gateway that took an event may be silent before another one sends it.
TAKEN_SECONDS = 30
# How long it is remembered what became of one.
KEPT_HOURS = 24


class DelayedOutcome(StrEnum):
    """How a delayed event ended."""

    SEND = "send"
    CANCEL = "cancel"


class NewDelayedEvent(NamedTuple):
    """What is to be sent; see the columns of the table."""

    delay_id: str
    user_id: UserId
    device_id: str
    request: str | None
    room_id: RoomId
    type: str
    state_key: str | None
    content: bytes
    replaced: str | None
    delay_ms: int


class DelayedEvent(NamedTuple):
    """An event that waits, or what became of it; `running_since` in milliseconds since the epoch."""

    delay_id: str
    user_id: UserId
    device_id: str
    room_id: RoomId
    type: str
    state_key: str | None
    content: bytes
    replaced: str | None
    delay_ms: int
    running_since: int
    taken: bool
    outcome: DelayedOutcome | None


_COLUMNS = """delay_id, user_id, device_id, room_id, type, state_key, content, replaced, delay_ms,
    (extract(epoch FROM running_since) * 1000)::bigint, taken, outcome"""

_ADD = """
INSERT INTO accounts.delayed_events
    (delay_id, user_id, device_id, request, room_id, type, state_key, content, replaced, delay_ms, due_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::bigint, now() + $10::bigint * interval '1 millisecond'
WHERE (SELECT count(*) FROM accounts.delayed_events WHERE user_id = $2 AND ended_at IS NULL) < $11
ON CONFLICT (user_id, device_id, request) DO NOTHING
RETURNING delay_id
"""

_FIND_REQUEST = "SELECT delay_id FROM accounts.delayed_events WHERE user_id = $1 AND device_id = $2 AND request = $3"

_FIND = f"SELECT {_COLUMNS} FROM accounts.delayed_events WHERE delay_id = $1"  # noqa: S608  constant text

_LIST = f"""
SELECT {_COLUMNS} FROM accounts.delayed_events WHERE user_id = $1 AND ended_at IS NULL ORDER BY running_since LIMIT $2
"""  # noqa: S608  constant text

_RESTART = """
UPDATE accounts.delayed_events SET running_since = now(), due_at = now() + delay_ms * interval '1 millisecond'
WHERE delay_id = $1 AND NOT taken AND ended_at IS NULL RETURNING delay_ms
"""

_CANCEL = """
UPDATE accounts.delayed_events SET ended_at = now(), outcome = 'cancel'
WHERE delay_id = $1 AND NOT taken AND ended_at IS NULL RETURNING 1
"""

_TAKE = f"""
UPDATE accounts.delayed_events SET taken = true, due_at = now() + interval '{TAKEN_SECONDS} seconds'
WHERE delay_id = $1 AND NOT taken AND ended_at IS NULL RETURNING {_COLUMNS}
"""  # noqa: S608  constant text

_TAKE_DUE = f"""
UPDATE accounts.delayed_events SET taken = true, due_at = now() + interval '{TAKEN_SECONDS} seconds'
WHERE delay_id IN (
    SELECT delay_id FROM accounts.delayed_events WHERE ended_at IS NULL AND due_at <= now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
RETURNING {_COLUMNS}
"""  # noqa: S608  constant text

_NEXT_DUE = """
SELECT (extract(epoch FROM min(due_at) - clock_timestamp()) * 1000)::bigint
FROM accounts.delayed_events WHERE ended_at IS NULL
"""

# The first word stays: a slow process may come to an event that another one has ended meanwhile.
_END = """
UPDATE accounts.delayed_events SET ended_at = now(), taken = false, outcome = $2, event_id = $3
WHERE delay_id = $1 AND ended_at IS NULL
"""

_SWEEP = f"DELETE FROM accounts.delayed_events WHERE ended_at < now() - interval '{KEPT_HOURS} hours'"  # noqa: S608  constant text


async def add_delayed_event(tx: Transaction, event: NewDelayedEvent, *, most: int) -> str | None:
    """Let an event wait, and answer its ID: that of the first request if this one repeats it.

    Returns:
        None if the user has `most` waiting events.
    """
    made: str | None = await tx.fetchval(_ADD, *event, most)
    if made is None and event.request is not None:
        made = await tx.fetchval(_FIND_REQUEST, event.user_id, event.device_id, event.request)
    return made


async def find_delayed_event(tx: Transaction, delay_id: str) -> DelayedEvent | None:
    """One, also if it has ended."""
    row = await tx.fetchrow(_FIND, delay_id)
    return None if row is None else DelayedEvent(*row)


async def list_delayed_events(tx: Transaction, user_id: UserId, limit: int) -> list[DelayedEvent]:
    """Those of a user that wait, the oldest first."""
    return [DelayedEvent(*row) for row in await tx.fetch(_LIST, user_id, limit)]


async def restart_delayed_event(tx: Transaction, delay_id: str) -> int | None:
    """Let it wait from the beginning; how long, or None if nothing waits under this ID."""
    delay_ms: int | None = await tx.fetchval(_RESTART, delay_id)
    return delay_ms


async def cancel_delayed_event(tx: Transaction, delay_id: str) -> bool:
    """Never send it; whether it still waited."""
    return await tx.fetchval(_CANCEL, delay_id) is not None


async def take_delayed_event(tx: Transaction, delay_id: str) -> DelayedEvent | None:
    """Have it sent by the caller alone, now; None if nothing waits under this ID."""
    row = await tx.fetchrow(_TAKE, delay_id)
    return None if row is None else DelayedEvent(*row)


async def take_due_events(tx: Transaction, limit: int) -> list[DelayedEvent]:
    """Those whose time has come, for the caller alone to send; also what another one took and did not send."""
    return [DelayedEvent(*row) for row in await tx.fetch(_TAKE_DUE, limit)]


async def next_due_ms(tx: Transaction) -> int | None:
    """Milliseconds until the next one is due; None if none waits."""
    due: int | None = await tx.fetchval(_NEXT_DUE)
    return due


async def end_delayed_event(tx: Transaction, delay_id: str, outcome: DelayedOutcome, event_id: EventId | None) -> None:
    """Write down what became of one that was taken, unless that is known. Repeatable."""
    await tx.execute(_END, delay_id, outcome, event_id)


async def sweep_ended_events(tx: Transaction) -> None:
    """Forget those that ended long ago."""
    await tx.execute(_SWEEP)

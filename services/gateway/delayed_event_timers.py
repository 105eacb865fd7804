"""Sends delayed events whose time has come: every gateway looks, PostgreSQL gives each event to one of them.

The command's id is made of the delay ID, so that an event whose gateway died while it sent it is still sent once.

Spec: MSC4140 (delayed events).
"""

import asyncio
from hashlib import sha256
from typing import NamedTuple

import orjson
import structlog

from matrixcore.identifiers import EventId, UserId
from services.gateway.room_changes import RoomChanges, new_redaction
from tessera.clock import Clock
from tessera.commands import Append, NewEvent, OutcomeStatus
from tessera.http.errors import MatrixError, UserSuspended
from tessera.storage import delayed_events
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.delayed_events import DelayedEvent, DelayedOutcome
from tessera.storage.outcomes import list_outcomes
from tessera.storage.room_reads.state import find_state
from tessera.storage.users import find_user

# How late an event may be that another process accepted meanwhile.
LOOK_SECONDS = 1.0
AT_ONCE = 50
SWEEP_EVERY = 3_600  # looks

log = structlog.get_logger(__name__)


async def run(changes: RoomChanges, clock: Clock) -> None:
    """Send what is due, for ever."""
    looks = 0
    while True:
        wait = LOOK_SECONDS
        try:
            wait = await send_due(changes)
            if looks % SWEEP_EVERY == 0:
                async with changes.accounts.transaction() as tx:
                    await delayed_events.sweep_ended_events(tx)
            looks += 1
        except DatabaseUnavailable:
            log.warning("delayed events are not readable")
        await clock.sleep(wait)


async def send_due(changes: RoomChanges) -> float:
    """Send some of those that are due; seconds until it is worth to look again."""
    async with changes.accounts.reading() as tx:
        due_ms = await delayed_events.next_due_ms(tx)
    if due_ms is None or due_ms > 0:
        return LOOK_SECONDS if due_ms is None else min(due_ms / 1000, LOOK_SECONDS)
    async with changes.accounts.transaction() as tx:
        taken = await delayed_events.take_due_events(tx, AT_ONCE)
    await asyncio.gather(*(_send_logged(changes, event) for event in taken))
    return 0.0


async def _send_logged(changes: RoomChanges, event: DelayedEvent) -> None:
    try:
        await send_taken(changes, event)
    except MatrixError as error:
        log.info("delayed event not sent", room_id=event.room_id, errcode=error.errcode)
    except Exception:  # one room being away must not hold up the others; it is tried again
        log.warning("delayed event not sent yet", room_id=event.room_id, exc_info=True)


async def send_taken(changes: RoomChanges, event: DelayedEvent) -> None:
    """Send an event that the caller has taken, and write down what became of it. Repeatable.

    Raises:
        UserSuspended: its sender may not speak any more.
        MatrixError: refused, for good; or not done in time (503), to be tried again.
    """
    command_id = sha256(b"delayed\0" + event.delay_id.encode()).digest()
    fate = await _look(changes, event, command_id)
    if fate.is_sent:
        await _end(changes, event, DelayedOutcome.SEND, fate.event_id)
        return
    if fate.is_superseded:
        await _end(changes, event, DelayedOutcome.CANCEL, None)
        return
    if not await _may_speak(changes, event.user_id):
        await _end(changes, event, DelayedOutcome.CANCEL, None)
        raise UserSuspended
    content = orjson.loads(event.content)
    new = NewEvent(event.type, event.state_key, content)
    if event.type == "m.room.redaction" and event.state_key is None:
        new = new_redaction(content, EventId(content["redacts"]))
    try:
        outcome = await changes.submit(
            event.room_id, event.user_id, Append(new, event.device_id or None), command_id=command_id
        )
    except MatrixError as error:
        if error.status != 503:
            await _end(changes, event, DelayedOutcome.CANCEL, None)
        raise
    await _end(changes, event, DelayedOutcome.SEND, outcome.event_ids[0] if outcome.event_ids else None)


class _Fate(NamedTuple):
    """What the room says of an event that is due.

    Attributes:
        is_sent: by a process that died, or was too slow, before it could note so.
        is_superseded: somebody else has set this state since: theirs is the newer word.
    """

    is_sent: bool = False
    event_id: EventId | None = None
    is_superseded: bool = False


async def _look(changes: RoomChanges, event: DelayedEvent, command_id: bytes) -> _Fate:
    async with changes.shards.of_room(event.room_id).reading() as tx:
        for outcome in await list_outcomes(tx, [command_id]):
            if outcome.status is OutcomeStatus.ACCEPTED:
                return _Fate(is_sent=True, event_id=outcome.event_ids[0] if outcome.event_ids else None)
        if event.state_key is None:
            return _Fate()
        current = await find_state(tx, event.room_id, event.type, event.state_key)
    is_theirs = current is not None and current.event_id != event.replaced and current.sender != event.user_id
    return _Fate(is_superseded=is_theirs)


async def _may_speak(changes: RoomChanges, user_id: UserId) -> bool:
    """What was left behind may say no more than the account could say now."""
    async with changes.accounts.reading() as tx:
        user = await find_user(tx, user_id)
    return user is None or not (user.suspended or user.locked)


async def _end(changes: RoomChanges, event: DelayedEvent, outcome: DelayedOutcome, event_id: EventId | None) -> None:
    async with changes.accounts.transaction() as tx:
        await delayed_events.end_delayed_event(tx, event.delay_id, outcome, event_id)

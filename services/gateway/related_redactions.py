"""Redacting with an event what relates to it: the points of a live location, the answers of a poll.

Spec: MSC3912 (redaction of related events).
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from matrixcore.identifiers import EventId, RoomId
from services.gateway.room_changes import RoomChanges, Session
from services.gateway.room_send import send_redaction
from tessera.http.errors import BadJson, InvalidParam, MatrixError
from tessera.storage.room_reads.relations import list_child_ids

WITH_RELATIONS = "org.matrix.msc3912.with_relations"
EVERY_RELATION = "*"
MAX_REL_TYPES = 20
MAX_RELATED = 500  # the oldest are redacted; a second request takes the next
AT_ONCE = 10

log = structlog.get_logger(__name__)


def relations_of(body: Mapping[str, Any]) -> list[str]:
    """The relation types that a redaction takes along.

    Raises:
        BadJson, InvalidParam
    """
    given = body.get(WITH_RELATIONS, [])
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise BadJson(f"{WITH_RELATIONS} must be a list of strings")
    if len(given) > MAX_REL_TYPES:
        raise InvalidParam(f"{WITH_RELATIONS} has more than {MAX_REL_TYPES} entries")
    return given


async def redact_related(
    changes: RoomChanges,
    session: Session,
    room_id: RoomId,
    target: EventId,
    rel_types: Sequence[str],
    content: dict[str, Any],
    path: str,
    txn_id: str,
) -> None:
    """Redact what relates to the event in these ways, as far as the user may. Repeatable.

    Args:
        path: of the request that redacted the event; each redaction here has an ID of its own below it.
    """
    wanted = None if EVERY_RELATION in rel_types else rel_types
    async with changes.shards.of_room(room_id).reading() as tx:
        related = await list_child_ids(tx, room_id, target, wanted, MAX_RELATED)
    places = asyncio.Semaphore(AT_ONCE)

    async def redact(event_id: EventId) -> bool:
        async with places:
            try:
                await send_redaction(changes, session, room_id, event_id, content, f"{path}/{event_id}", txn_id)
            except MatrixError:
                return False
        return True

    done = await asyncio.gather(*map(redact, related))
    if not all(done):
        log.info("related events not redacted", room_id=room_id, count=done.count(False))

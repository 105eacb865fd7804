"""The room's history backwards from some events, for servers that lack it.

The walk follows the DAG; it is read a stretch of the room's order at a time, since the events of a room stand nearly
always in a line.

Spec: S-S API §Backfilling and retrieving missing events.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId
from services.federation_in.dependencies import FederationInDep
from services.federation_in.event_reads import event_id_of, transaction_of
from services.federation_in.peer_access import pdus_for_peer, require_peer_room, room_id_of
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.http.errors import BadJson
from tessera.http.replies import json_reply
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.peer_events import PeerEvent, list_below, list_events

router = peer_router()

MAX_STARTS = 20
MAX_BACKFILLED = 100
DEFAULT_MISSING, MAX_MISSING = 10, 20
MAX_ROUNDS = 10  # of reading; a room that forks wildly is answered in part


@router.get(V1 + "/backfill/{room_id}")
async def backfill(
    room_id: str,
    peer: CurrentPeer,
    deps: FederationInDep,
    v: Annotated[list[str], Query(max_length=MAX_STARTS)],
    limit: int,
) -> Response:
    """These events and those before them, the newest first."""
    room_name = room_id_of(room_id)
    starts = [event_id_of(one) for one in v]
    async with deps.shards.of_room(room_name).reading() as tx:
        room = await require_peer_room(deps, tx, room_name, peer.origin)
        found = await walk_back(tx, room_name, starts, (), max(0, min(limit, MAX_BACKFILLED)))
        found.sort(key=lambda event: (event.depth, event.order or OrderKey(0)), reverse=True)
        pdus = await pdus_for_peer(deps, tx, room, peer.origin, found)
    return json_reply(transaction_of(deps, pdus))


@router.post(V1 + "/get_missing_events/{room_id}")
async def get_missing_events(room_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The events between those that a server has and those that it got, the oldest first."""
    room_name = room_id_of(room_id)
    latest, earliest = (_ids_of(peer.content.get(key), key) for key in ("latest_events", "earliest_events"))
    limit, min_depth = peer.content.get("limit", DEFAULT_MISSING), peer.content.get("min_depth", 0)
    if type(limit) is not int or type(min_depth) is not int:
        raise BadJson("limit and min_depth must be integers")
    async with deps.shards.of_room(room_name).reading() as tx:
        room = await require_peer_room(deps, tx, room_name, peer.origin)
        heads = await list_events(tx, room_name, latest)
        starts = [prev for event in heads.values() if not event.outlier for prev in event.prev_events]
        stops = {*earliest, *latest}
        found = await walk_back(tx, room_name, starts, stops, max(0, min(limit, MAX_MISSING)), min_depth)
        found.sort(key=lambda event: (event.depth, event.order or OrderKey(0)))
        pdus = await pdus_for_peer(deps, tx, room, peer.origin, found)
    return json_reply({"events": [orjson.Fragment(pdu) for pdu in pdus]})


async def walk_back(
    tx: Transaction,
    room_id: RoomId,
    starts: Iterable[EventId],
    stops: Collection[EventId],
    limit: int,
    min_depth: int = 0,
) -> list[PeerEvent]:
    """The events from some on backwards, breadth first; rejected ones are passed through and left out.

    Args:
        stops: where the walk does not go.
    """
    known: dict[EventId, PeerEvent | None] = {}
    for _ in range(MAX_ROUNDS):
        found, unknown = _walk(list(starts), known, frozenset(stops), limit, min_depth)
        if not unknown or len(found) >= limit:
            return found[:limit]
        loaded = await list_events(tx, room_id, unknown)
        known.update((event_id, loaded.get(event_id)) for event_id in unknown)
        orders = [event.order for event in loaded.values() if event.order is not None]
        if orders:
            below = await list_below(tx, room_id, max(orders), limit)
            known.update((event.event_id, event) for event in below)
    return found


def _walk(
    starts: Sequence[EventId],
    known: dict[EventId, PeerEvent | None],
    stops: frozenset[EventId],
    limit: int,
    min_depth: int,
) -> tuple[list[PeerEvent], list[EventId]]:
    """What is reached through known events, and what would have to be known to go on. None stands for no event."""
    found: list[PeerEvent] = []
    unknown: dict[EventId, None] = {}
    seen: set[EventId] = set(stops)
    level = list(dict.fromkeys(one for one in starts if one not in stops))
    while level and len(found) < limit:
        seen.update(level)
        further: dict[EventId, None] = {}
        for event_id in level:
            if event_id not in known:
                unknown[event_id] = None
                continue
            event = known[event_id]
            if event is None or event.outlier or event.depth < min_depth:
                continue
            if not event.rejected:
                found.append(event)
            further.update(dict.fromkeys(prev for prev in event.prev_events if prev not in seen))
        level = list(further)
    return found, list(unknown)


def _ids_of(value: Any, key: str) -> list[EventId]:
    if not isinstance(value, list) or len(value) > MAX_STARTS * 5:
        raise BadJson(f"{key} must be an array of event IDs")
    return [event_id_of(one) for one in value[:MAX_STARTS]]

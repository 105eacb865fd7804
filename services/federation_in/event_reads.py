"""Single events for other servers, and what authorises them.

Spec: S-S API §Retrieving events, §Retrieving event authorization information.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import EventId, InvalidIdentifier, ServerName, parse_event_id
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.peer_access import pdus_for_peer, require_peer_room, room_id_of
from services.federation_in.routing import V1, CurrentPeer, peer_router
from tessera.http.errors import InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_reply
from tessera.storage.database import Transaction
from tessera.storage.peer_events import PeerEvent, list_anywhere, list_auth_chain, list_events, list_pdus
from tessera.storage.room_reads.events import list_by_time

router = peer_router()

Direction = Annotated[Literal["f", "b"], Query(alias="dir")]

MAX_AUTH_CHAIN = 20_000
MAX_TS = (1 << 63) - 1
CANDIDATES = 20  # the nearest events, of which the first that is part of the room's history is taken


@router.get(V1 + "/event/{event_id}")
async def get_event(event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """One event of a room in which the asking server is."""
    pdu = await find_event_for(deps, event_id_of(event_id), peer.origin)
    return json_reply(transaction_of(deps, [pdu]))


@router.get(V1 + "/event_auth/{room_id}/{event_id}")
async def get_event_auth(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The auth chain of an event."""
    room, event = room_id_of(room_id), event_id_of(event_id)
    async with deps.shards.of_room(room).reading() as tx:
        await require_peer_room(deps, tx, room, peer.origin)
        found = (await list_events(tx, room, [event])).get(event)
        if found is None or found.outlier or found.rejected:
            raise NotFound("The event is not known here")
        chain = await list_auth_chain(tx, room, [event], MAX_AUTH_CHAIN)
        pdus = await list_pdus(tx, room, list(chain))
    return json_reply({"auth_chain": [orjson.Fragment(pdu) for pdu in pdus.values()]})


@router.get(V1 + "/timestamp_to_event/{room_id}")
async def get_timestamp_to_event(
    room_id: str, peer: CurrentPeer, deps: FederationInDep, ts: int, direction: Direction
) -> Response:
    """The event nearest to a time."""
    room = room_id_of(room_id)
    wanted = max(-MAX_TS, min(ts, MAX_TS))
    async with deps.shards.of_room(room).reading() as tx:
        await require_peer_room(deps, tx, room, peer.origin)
        nearest = await list_by_time(tx, room, wanted, backwards=direction == "b", limit=CANDIDATES)
        stored = await list_events(tx, room, [one.event_id for one in nearest])
    for one in nearest:
        found = stored.get(one.event_id)
        if found is not None and found.order is not None and not found.rejected:
            return json_reply({"event_id": one.event_id, "origin_server_ts": one.origin_server_ts})
    raise NotFound("There is no event in this direction")


async def find_event_for(deps: FederationInDeps, event_id: EventId, peer: ServerName) -> bytes:
    """The event as the server may see it; the room is not said, so that all shards are asked.

    Raises:
        NotFound: it is not here, or is an outlier or rejected. Forbidden: the server is not in its room.
    """
    found = await asyncio.gather(*(_find_in(deps, shard, event_id, peer) for shard in deps.shards.names))
    answers = [one for one in found if one is not None]
    for one in answers:
        if isinstance(one, bytes):
            return one
    if answers and isinstance(answers[0], MatrixError):
        raise answers[0]
    raise NotFound("The event is not known here")


async def _find_in(
    deps: FederationInDeps, shard: str, event_id: EventId, peer: ServerName
) -> bytes | MatrixError | None:
    async with deps.shards.databases[shard].reading() as tx:
        events = [e for e in await list_anywhere(tx, event_id) if not e.outlier and not e.rejected]
        refusal: MatrixError | None = None
        for event in events:
            if deps.shards.shard_of(deps.shards.partition_of(event.room_id)) != shard:
                continue  # what a partition that moved away left behind
            try:
                return await _shown(deps, tx, event, peer)
            except MatrixError as error:
                refusal = error
    return refusal


async def _shown(deps: FederationInDeps, tx: Transaction, event: PeerEvent, peer: ServerName) -> bytes:
    room = await require_peer_room(deps, tx, event.room_id, peer)
    return (await pdus_for_peer(deps, tx, room, peer, [event]))[0]


def event_id_of(text: str) -> EventId:
    """The event ID of a path."""
    try:
        return parse_event_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"eventId: {error}") from None


def transaction_of(deps: FederationInDeps, pdus: Sequence[bytes]) -> dict[str, Any]:
    """Events in the form of a transaction."""
    return {
        "origin": deps.server_name,
        "origin_server_ts": deps.clock.now_ms(),
        "pdus": [orjson.Fragment(pdu) for pdu in pdus],
    }

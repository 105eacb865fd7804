"""The state before an event, for servers that lack it.

Spec: S-S API §Retrieving events, /state and /state_ids.
"""

from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response, StreamingResponse

from matrixcore.identifiers import EventId, RoomId
from services.federation_in.dependencies import FederationInDep, FederationInDeps
from services.federation_in.event_reads import event_id_of
from services.federation_in.peer_access import require_peer_room, room_id_of
from services.federation_in.routing import V1, CurrentPeer, Peer, peer_router
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.storage.peer_events import list_auth_chain, list_pdus
from tessera.storage.resident_rooms import load_state_before

router = peer_router()

MAX_AUTH_CHAIN = 200_000
SLICE = 500  # events held while an answer is written


@router.get(V1 + "/state_ids/{room_id}")
async def get_state_ids(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The IDs of the events of the state before an event, and of their auth chain."""
    state, chain = await list_state_before(deps, peer, room_id_of(room_id), event_id_of(event_id))
    return json_reply({"pdu_ids": state, "auth_chain_ids": chain})


@router.get(V1 + "/state/{room_id}")
async def get_state(room_id: str, event_id: str, peer: CurrentPeer, deps: FederationInDep) -> Response:
    """The events themselves, written while they are read."""
    room = room_id_of(room_id)
    state, chain = await list_state_before(deps, peer, room, event_id_of(event_id))
    return StreamingResponse(_write(deps, room, state, chain), media_type="application/json")


async def list_state_before(
    deps: FederationInDeps, peer: Peer, room_id: RoomId, event_id: EventId
) -> tuple[list[EventId], list[EventId]]:
    """The state before an event, and the auth chain of its events.

    Raises:
        NotFound: the event is not part of the room's history here. Forbidden
    """
    async with deps.shards.of_room(room_id).reading() as tx:
        await require_peer_room(deps, tx, room_id, peer.origin)
        state = await load_state_before(tx, room_id, event_id)
        if state is None:
            raise NotFound("The event is not known here")
        event_ids = list(state.values())
        return event_ids, list(await list_auth_chain(tx, room_id, event_ids, MAX_AUTH_CHAIN))


async def _write(
    deps: FederationInDeps, room_id: RoomId, state: Sequence[EventId], chain: Sequence[EventId]
) -> AsyncIterator[bytes]:
    for opening, event_ids in ((b'{"pdus":[', state), (b'],"auth_chain":[', chain)):
        yield opening
        for start in range(0, len(event_ids), SLICE):
            async with deps.shards.of_room(room_id).reading() as tx:
                pdus = await list_pdus(tx, room_id, event_ids[start : start + SLICE])
            if pdus:
                yield (b"," if start else b"") + b",".join(pdus.values())
    yield b"]}"

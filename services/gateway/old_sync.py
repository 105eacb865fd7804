"""A single event by its ID alone, as clients asked before rooms stood in the path.

Of the deprecated endpoints beside it, the stream of all rooms (`GET /events` without a room) and `GET /initialSync`
are not here: /sync is what took their place.

Spec: C-S API, deprecated: GET /events/{eventId} (api/client-server/old_sync.yaml).
"""

import asyncio

from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.path_identifiers import event_id_of
from services.gateway.rooms import get_one_room_event
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import NotFound
from tessera.storage import user_rooms
from tessera.storage.room_reads.events import list_rooms_with_event

router = client_router()

MAX_ROOMS = 5  # the IDs of old room versions are chosen by servers, so that several rooms may have one


@router.get("/events/{event_id}")
async def get_one_event(event_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """An event of a room that the user is or was in, if the user may see it there."""
    rooms = await list_own_rooms_with_event(gateway, requester.user_id, event_id_of(event_id))
    for room_id in rooms:
        try:
            return await get_one_room_event(room_id, event_id, requester, gateway)
        except NotFound:
            continue
    raise NotFound("Event not found")


async def list_own_rooms_with_event(gateway: GatewayDeps, user_id: UserId, event_id: EventId) -> list[RoomId]:
    """Which of the user's rooms have such an event, the shards asked in parallel; one room unless a peer lies."""
    async with gateway.accounts.reading() as tx:
        own = await user_rooms.list_rooms(tx, user_id, ("join", "leave", "ban"))

    async def of_shard(name: str, rooms: list[RoomId]) -> list[RoomId]:
        async with gateway.shards.databases[name].reading() as tx:
            return await list_rooms_with_event(tx, rooms, event_id)

    groups = gateway.shards.group_rooms(room.room_id for room in own)
    found = await asyncio.gather(*(of_shard(name, rooms) for name, rooms in groups.items()))
    return sorted(room_id for rooms in found for room_id in rooms)[:MAX_ROOMS]

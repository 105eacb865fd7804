"""GET /timestamp_to_event. Spec: C-S API §Finding events by timestamp."""

from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from matrixcore.visibility import Membership, Sight
from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import RoomView, require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.federation.backfilling import Backfiller
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.room_visibility import sight_of
from tessera.storage.room_reads.events import HIGHEST, LOWEST, TimedEvent, list_by_time, list_events
from tessera.storage.shards import RoomShards

router = client_router()

PAGES = (20, 200, 2_000)  # the nearest events, of which the first visible one is taken; then no more are looked at
MAX_TS = (1 << 63) - 1
MAX_FETCHES = 5  # of history from other servers, for one answer


@router.get("/rooms/{room_id}/timestamp_to_event")
async def get_event_by_timestamp(
    room_id: str,
    requester: CurrentRequester,
    gateway: GatewayDep,
    ts: int,
    direction: Annotated[Literal["f", "b"], Query(alias="dir")],
) -> Response:
    """The visible event nearest to a time, at it or in the given direction."""
    room = room_id_of(room_id)
    view = await require_view(gateway.shards, gateway.accounts, room, requester.user_id)
    wanted = max(-MAX_TS, min(ts, MAX_TS))
    backwards = direction == "b"
    found = await find_visible(gateway.shards, view, wanted, backwards=backwards)
    if gateway.backfiller is not None and view.history.current is Membership.JOIN:
        found = await _find_elsewhere(gateway.shards, gateway.backfiller, view, wanted, found, backwards=backwards)
    if found is None:
        raise NotFound("Unable to find an event in this direction")
    return json_reply({"event_id": found.event_id, "origin_server_ts": found.origin_server_ts})


async def find_visible(shards: RoomShards, view: RoomView, ts: int, *, backwards: bool) -> TimedEvent | None:
    """The nearest event that the user of the view may see."""
    room_id, behind = view.room.room_id, None
    async with shards.of_room(room_id).reading() as tx:
        for limit in PAGES:
            nearest = await list_by_time(tx, room_id, ts, backwards=backwards, limit=limit, behind=behind)
            rows = {row.event_id: row for row in await list_events(tx, room_id, [one.event_id for one in nearest])}
            for one in nearest:
                row = rows.get(one.event_id)
                if row is not None and sight_of(row, view.history) is not Sight.HIDDEN:
                    return one
            if len(nearest) < limit:
                return None
            ts, behind = nearest[-1].origin_server_ts, nearest[-1].order
    return None


async def _find_elsewhere(
    shards: RoomShards, backfiller: Backfiller, view: RoomView, ts: int, found: TimedEvent | None, *, backwards: bool
) -> TimedEvent | None:
    """Where the history here breaks off, ask the room's servers; what is nearer there is fetched, with all above it."""
    room_id = view.room.room_id
    if not await backfiller.is_broken(room_id):
        return found
    nearest = await backfiller.nearest_elsewhere(room_id, ts, backwards=backwards)
    if nearest is None or (found is not None and abs(found.origin_server_ts - ts) <= abs(nearest[1] - ts)):
        return found
    for _ in range(MAX_FETCHES):
        if not await backfiller.extend(room_id, LOWEST, HIGHEST):
            break
        async with shards.of_room(room_id).reading() as tx:
            if await list_events(tx, room_id, [nearest[0]]):
                break
    return await find_visible(shards, view, ts, backwards=backwards)

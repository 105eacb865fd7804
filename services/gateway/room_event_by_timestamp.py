"""GET /timestamp_to_event. Spec: C-S API §Finding events by timestamp."""

from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import require_view
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply
from tessera.room_visibility import sight_of
from tessera.storage.room_reads.events import list_by_time, list_events

router = client_router()

CANDIDATES = 50  # the nearest events, of which the first visible one is taken
MAX_TS = (1 << 63) - 1


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
    async with gateway.shards.of_room(room).reading() as tx:
        nearest = await list_by_time(tx, room, wanted, backwards=direction == "b", limit=CANDIDATES)
        rows = {row.event_id: row for row in await list_events(tx, room, [event_id for event_id, _ in nearest])}
    for event_id, origin_server_ts in nearest:
        row = rows.get(event_id)
        if row is not None and sight_of(row, view.history) is not Sight.HIDDEN:
            return json_reply({"event_id": event_id, "origin_server_ts": origin_server_ts})
    raise NotFound("Unable to find an event in this direction")

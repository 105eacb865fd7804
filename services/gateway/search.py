"""Searching what was said in all rooms. Spec: C-S API §Server Side Search."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import RoomId, UserId
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.event_pages import list_ignored
from services.gateway.room_access import RoomView
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from services.gateway.search_context import Surrounding, list_surroundings
from services.gateway.search_request import Grouping, PageStart, SearchRequest, encode_page_start, parse_search
from services.gateway.search_results import Result, ResultPage, find_results
from tessera.event_serving import serve_events
from tessera.http.authentication import Requester
from tessera.http.errors import BadJson, MissingParam
from tessera.http.replies import json_reply
from tessera.pagination_token import encode_page_token
from tessera.records import OrderKey
from tessera.storage.database import Database
from tessera.storage.sync_reads.events import list_members_at, list_states

router = client_router()

MAX_STATE_MEMBERS = 20_000  # of all rooms together; above it only the senders' member events are in their states


@router.post("/search")
async def search(
    body: JsonObject,
    requester: CurrentRequester,
    gateway: GatewayDep,
    next_batch: Annotated[str | None, Query()] = None,
) -> Response:
    """Find events by their words in all rooms that the user is or was in."""
    categories = body.get("search_categories")
    if categories is None:
        raise MissingParam("search_categories is missing")
    if not isinstance(categories, Mapping):
        raise BadJson("search_categories must be an object")
    if "room_events" not in categories:
        return json_reply({"search_categories": {}})
    request = parse_search(categories["room_events"], next_batch)
    return json_reply({"search_categories": {"room_events": await search_room_events(gateway, requester, request)}})


async def search_room_events(gateway: GatewayDeps, requester: Requester, request: SearchRequest) -> dict[str, Any]:
    """The answer for the category room_events."""
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    page = await find_results(gateway.shards, gateway.accounts, requester.user_id, request, ignored)
    now_ms = gateway.clock.now_ms()
    surroundings = await list_surroundings(gateway.shards, gateway.accounts, page.results, request, ignored)
    reply: dict[str, Any] = {
        "count": page.count,
        "highlights": list(request.highlights),
        "results": [
            _result_json(result, around, requester, now_ms, with_context=request.context is not None)
            for result, around in zip(page.results, surroundings, strict=True)
        ],
        "groups": _groups_json(page, request),
    }
    if request.with_state:
        reply["state"] = await _list_room_states(gateway, requester, page.results, now_ms)
    if page.last is not None:
        group = (None, None) if request.start is None else request.start[4:]
        reply["next_batch"] = encode_page_start(PageStart(*page.last[:3], page.count, *group))
    return reply


def _result_json(
    result: Result, around: Surrounding, requester: Requester, now_ms: int, *, with_context: bool
) -> dict[str, Any]:
    view, room_id = result.view, result.hit.room_id
    rows = [*around.before, result.event, *around.after]
    served = serve_events(
        rows, view.rules, view.reader(requester.device_id, now_ms), room_id=room_id, bundles=around.bundles
    )
    at = len(around.before)
    reply: dict[str, Any] = {"rank": result.hit.rank, "result": served[at]}
    if with_context:
        reply["context"] = {
            # Nearest first, as /context has it.
            "events_before": served[:at],
            "events_after": served[at + 1 :],
            "start": encode_page_token(around.start),
            "end": encode_page_token(around.end),
        }
        if around.profiles is not None:
            reply["context"]["profile_info"] = around.profiles
    return reply


def _groups_json(page: ResultPage, request: SearchRequest) -> dict[str, Any]:
    return {grouping: _group_json(page, grouping) for grouping in request.groupings}


def _group_json(page: ResultPage, grouping: Grouping) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    last: dict[str, Result] = {}
    for result in page.results:
        value = str(result.hit.room_id if grouping == "room_id" else result.event.sender)
        group = groups.setdefault(value, {"order": len(groups) + 1, "results": []})
        group["results"].append(result.event.event_id)
        last[value] = result
    if page.last is not None:
        for value, result in last.items():
            start = PageStart(*result.hit[:3], page.count, grouping, value)
            groups[value]["next_batch"] = encode_page_start(start)
    return groups


async def _list_room_states(
    gateway: GatewayDeps, requester: Requester, results: Sequence[Result], now_ms: int
) -> dict[str, Any]:
    """The state of each room in the results, as it is or as it was when the user left."""
    by_shard: dict[str, dict[RoomId, RoomView]] = {}
    senders: dict[RoomId, set[UserId]] = {}
    for result in results:
        room_id = result.hit.room_id
        shard = gateway.shards.shard_of(gateway.shards.partition_of(room_id))
        by_shard.setdefault(shard, {})[room_id] = result.view
        senders.setdefault(room_id, set()).add(result.event.sender)

    members = sum(view.room.joined_count for views in by_shard.values() for view in views.values())
    loaded = await asyncio.gather(
        *(
            _load_states(gateway.shards.databases[shard], views, senders, with_members=members <= MAX_STATE_MEMBERS)
            for shard, views in by_shard.items()
        )
    )
    return {
        room_id: serve_events(rows, view.rules, view.reader(requester.device_id, now_ms), room_id=room_id)
        for states, views in zip(loaded, by_shard.values(), strict=True)
        for room_id, rows in states.items()
        for view in (views[room_id],)
    }


async def _load_states(
    database: Database, views: Mapping[RoomId, RoomView], senders: Mapping[RoomId, set[UserId]], *, with_members: bool
) -> dict[RoomId, list[Any]]:
    points: dict[RoomId, OrderKey] = {room_id: view.head for room_id, view in views.items()}
    async with database.reading() as tx:
        found = await list_states(
            tx, {room_id: (point, point.anchor) for room_id, point in points.items()}, with_members=with_members
        )
        states = {room_id: rows for room_id, (rows, _) in found.items()}
        if not with_members:
            wanted = {room_id: (point, senders[room_id]) for room_id, point in points.items()}
            for room_id, own in (await list_members_at(tx, wanted)).items():
                states[room_id] += own.values()
    return states

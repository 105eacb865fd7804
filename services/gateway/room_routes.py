"""The gateway's routes about rooms, put together for the application."""

from collections.abc import Sequence
from functools import cache

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Route

from services.gateway import (
    banning,
    create_room,
    delayed_events,
    directory,
    event_context,
    inviting,
    joining,
    kicking,
    knocking,
    leaving,
    list_joined_rooms,
    list_public_rooms,
    message_pagination,
    mutual_rooms,
    notifications,
    old_sync,
    peeking_events,
    purge_history,
    read_markers,
    receipts,
    redaction,
    relations,
    report_content,
    room_event_by_timestamp,
    room_initial_sync,
    room_members,
    room_send,
    room_state,
    room_summary,
    room_upgrades,
    rooms,
    rtc_transports,
    search,
    server_notices,
    space_hierarchy,
    threads_list,
    typing,
)
from services.gateway.routing import mounted

HOT_ROUTES: tuple[Route, ...] = (*room_send.routes, *message_pagination.routes, *room_members.routes)
"""Plain routes, to stand first in the application's table."""

_MODULES = (
    *(banning, create_room, directory, event_context, inviting, joining, kicking, knocking, leaving),
    *(list_joined_rooms, list_public_rooms, notifications, old_sync, peeking_events, read_markers, receipts),
    *(redaction, report_content, room_initial_sync, room_state, rooms, search, typing),
    *(room_upgrades,),
)

# Newer endpoints have a version of their own; clients knew them under the second prefix before.
_V1_PREFIXES = ("/_matrix/client/v1", "/_matrix/client/unstable")
_SUMMARY_PREFIX = "/_matrix/client/unstable/im.nheko.summary"
_MUTUAL_PREFIX = "/_matrix/client/unstable/uk.half-shot.msc2666"


@cache
def room_routers() -> tuple[APIRouter, ...]:
    """The FastAPI routers, with their whole paths; made once."""
    newer = [
        _under(relations.router, _V1_PREFIXES),
        _under(room_event_by_timestamp.router, _V1_PREFIXES[:1]),
        _under(threads_list.router, _V1_PREFIXES[:1]),
        _under(mutual_rooms.router, _V1_PREFIXES[:1]),
        _under(mutual_rooms.unstable_router, [_MUTUAL_PREFIX]),
        _under(room_summary.router, _V1_PREFIXES[:1]),
        _under(room_summary.unstable_router, [_SUMMARY_PREFIX]),
        _under(space_hierarchy.router, _V1_PREFIXES[:1]),
    ]
    unstable = [delayed_events.router, rtc_transports.router]
    mounted_ones = [mounted(module.router) for module in _MODULES]
    return (*mounted_ones, *newer, *unstable, purge_history.router, server_notices.router)


def _under(router: APIRouter, prefixes: Sequence[str]) -> APIRouter:
    """The routes of a `client_router` under prefixes of their own."""
    all_routes = APIRouter(default_response_class=Response)
    for route in router.routes:
        assert isinstance(route, APIRoute)
        for prefix in prefixes:
            all_routes.add_api_route(
                prefix + route.path, route.endpoint, methods=sorted(route.methods or ()), name=route.name
            )
    return all_routes

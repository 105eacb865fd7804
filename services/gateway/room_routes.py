"""The gateway's routes about rooms, put together for the application."""

from fastapi import APIRouter
from starlette.routing import Route

from services.gateway import (
    banning,
    create_room,
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
    peeking_events,
    read_markers,
    receipts,
    redaction,
    relations,
    room_event_by_timestamp,
    room_initial_sync,
    room_send,
    room_state,
    rooms,
    typing,
)
from services.gateway.routing import mounted

HOT_ROUTES: tuple[Route, ...] = tuple(room_send.routes)
"""Plain routes, to stand first in the application's table."""

# Newer endpoints have a version of their own; clients knew them under the second prefix before.
_V1_PREFIXES = ("/_matrix/client/v1", "/_matrix/client/unstable")


def room_routers() -> list[APIRouter]:
    """The FastAPI routers, with their whole paths."""
    routers = [
        mounted(module.router)
        for module in (
            banning,
            create_room,
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
            peeking_events,
            read_markers,
            receipts,
            redaction,
            room_initial_sync,
            room_state,
            rooms,
            typing,
        )
    ]
    newer = APIRouter()
    for prefix in _V1_PREFIXES:
        newer.include_router(relations.router, prefix=prefix)
    newer.include_router(room_event_by_timestamp.router, prefix=_V1_PREFIXES[0])
    return [*routers, newer]

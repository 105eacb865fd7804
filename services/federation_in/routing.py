"""How the routes of federation_in are made."""

from fastapi import APIRouter
from starlette.responses import Response

from tessera.federation.authentication import CurrentPeer, Peer

__all__ = ["V1", "V2", "CurrentPeer", "Peer", "peer_router"]

V1 = "/_matrix/federation/v1"
V2 = "/_matrix/federation/v2"


def peer_router() -> APIRouter:
    """A router whose paths are whole: `@router.get(V1 + "/event/{event_id}")`."""
    return APIRouter(default_response_class=Response)

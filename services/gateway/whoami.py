"""Who the access token belongs to: a plain route, asked all the time. Spec: C-S API GET /account/whoami."""

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.routing import client_routes, requester_of
from tessera.http.replies import json_reply


async def get_token_owner(request: Request) -> Response:
    """The user and device of the token; no query while the token is cached."""
    requester = await requester_of(request)
    reply: dict[str, object] = {"user_id": requester.user_id, "is_guest": requester.is_guest}
    if requester.device_id:
        reply["device_id"] = requester.device_id
    return json_reply(reply)


routes = client_routes("/account/whoami", get_token_owner, methods=["GET"])

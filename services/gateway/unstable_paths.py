"""Endpoints by the names that they had as proposals: clients of before the specification took them still ask so.

Spec: MSC4133 (profile fields), MSC1756 (cross-signing). MSC3391 (deleting account data),
MSC3814 (dehydrated devices), MSC4108 (rendezvous) and MSC4306 (thread subscriptions) are proposals still.
"""

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Route

from services.gateway import account_data, dehydrated_devices, rendezvous, thread_subscriptions
from services.gateway.cross_signing import upload_cross_signing_keys
from services.gateway.profile import delete_profile_field, get_profile_field, set_profile_field
from services.gateway.routing import mounted

_FIELD = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{key_name}"

routes = [Route(_FIELD, get_profile_field, methods=["GET"]), *rendezvous.routes]

whole_router = APIRouter(default_response_class=Response)
"""Its paths are whole."""

whole_router.add_api_route(_FIELD, set_profile_field, methods=["PUT"])
whole_router.add_api_route(_FIELD, delete_profile_field, methods=["DELETE"])
whole_router.add_api_route(
    "/_matrix/client/unstable/keys/device_signing/upload", upload_cross_signing_keys, methods=["POST"]
)
_PROPOSED = (
    mounted(account_data.deletions, ["/_matrix/client/unstable/org.matrix.msc3391"]),
    dehydrated_devices.router,
    thread_subscriptions.router,
)
for proposed in _PROPOSED:
    for route in proposed.routes:
        assert isinstance(route, APIRoute)
        whole_router.add_api_route(route.path, route.endpoint, methods=sorted(route.methods or ()), name=route.name)

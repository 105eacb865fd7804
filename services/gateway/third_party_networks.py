"""Networks that bridges bring in. Spec: C-S API §Third-party Networks."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply

router = client_router()

MAX_FIELDS = 20
MAX_FIELD_LENGTH = 500


@router.get("/thirdparty/protocols")
async def get_protocols(_requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The protocols of all networks."""
    networks = gateway.networks
    names = networks.protocols
    found = await asyncio.gather(*(networks.find_protocol(name) for name in names))
    return json_reply({name: one for name, one in zip(names, found, strict=True) if one is not None})


@router.get("/thirdparty/protocol/{protocol}")
async def get_protocol_metadata(protocol: str, _requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """One protocol."""
    found = await gateway.networks.find_protocol(protocol)
    if found is None:
        raise _unknown(protocol)
    return json_reply(found)


@router.get("/thirdparty/location")
async def query_location_by_alias(request: Request, _requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """What a portal room stands for on its network."""
    alias = request.query_params.get("alias", "")
    return json_reply(await gateway.networks.list_by_matrix_id("location", "alias", alias))


@router.get("/thirdparty/user")
async def query_user_by_id(request: Request, _requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Whom a puppet stands for on its network."""
    user_id = request.query_params.get("userid", "")
    return json_reply(await gateway.networks.list_by_matrix_id("user", "userid", user_id))


@router.get("/thirdparty/location/{protocol}")
async def query_location_by_protocol(
    protocol: str, request: Request, _requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """The portal rooms of one network."""
    return json_reply(await _matches(gateway, "location", protocol, request))


@router.get("/thirdparty/user/{protocol}")
async def query_user_by_protocol(
    protocol: str, request: Request, _requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """The puppets of one network."""
    return json_reply(await _matches(gateway, "user", protocol, request))


async def _matches(gateway: GatewayDeps, kind: str, protocol: str, request: Request) -> list[dict[str, Any]]:
    networks = gateway.networks
    if protocol not in networks.protocols:
        raise _unknown(protocol)
    fields = {
        name: value[:MAX_FIELD_LENGTH]
        for name, value in list(request.query_params.items())[:MAX_FIELDS]
        if name != "access_token" and len(name) <= MAX_FIELD_LENGTH
    }
    found = await networks.list_matches(kind, protocol, fields)
    if not found:
        raise NotFound("Nothing was found")
    return found


def _unknown(protocol: str) -> NotFound:
    return NotFound(f"No application service here serves the protocol {protocol[:100]}")

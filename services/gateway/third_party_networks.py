"""Networks that bridges bring in: none, as no application service serves one here.

Spec: C-S API §Third-party Networks.
"""

from starlette.responses import Response

from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply

router = client_router()


@router.get("/thirdparty/protocols")
async def get_protocols(_requester: CurrentRequester) -> Response:
    """The protocols of all networks."""
    return json_reply({})


@router.get("/thirdparty/protocol/{protocol}")
async def get_protocol_metadata(protocol: str, _requester: CurrentRequester) -> Response:
    """One protocol."""
    raise _unknown(protocol)


@router.get("/thirdparty/location")
@router.get("/thirdparty/user")
async def query_by_matrix_id(_requester: CurrentRequester) -> Response:
    """What portal rooms and puppets stand for on their networks."""
    return json_reply([])


@router.get("/thirdparty/location/{protocol}")
@router.get("/thirdparty/user/{protocol}")
async def query_by_protocol(protocol: str, _requester: CurrentRequester) -> Response:
    """The portal rooms and puppets of one network."""
    raise _unknown(protocol)


def _unknown(protocol: str) -> NotFound:
    return NotFound(f"No application service here serves the protocol {protocol[:100]}")

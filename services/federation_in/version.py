"""Which implementation this is. Spec: S-S API §Server implementation."""

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.federation_in.routing import V1
from tessera.http.replies import json_reply

_ANSWER = {"server": {"name": "Tessera", "version": version("tessera")}}


async def get_version(_request: Request) -> Response:
    """Name and version."""
    return json_reply(_ANSWER)


routes = [Route(V1 + "/version", get_version, methods=["GET"])]

"""The server's own address in a browser: on to the web client that the operator names."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.gateway.dependencies import gateway_of
from tessera.http.errors import Unrecognized


async def open_web_client(request: Request) -> Response:
    """Redirect to web_client_location."""
    location = gateway_of(request).settings.web_client_location
    if location is None:
        raise Unrecognized
    return RedirectResponse(location, status_code=302)


routes = [Route("/", open_web_client, methods=["GET"])]

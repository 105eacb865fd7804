"""The page that the link in a mail leads to. Nothing is confirmed by opening it: mail filters open links too."""

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.gateway.address_validation import VALIDATION_PATH, describe
from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.pages import page
from tessera.http.errors import NotFound


async def get_validation_page(request: Request) -> Response:
    """Ask whether the address is to be confirmed."""
    gateway = gateway_of(request)
    try:
        found = await gateway.addresses.find_by_token(*_credentials(request))
    except NotFound as error:
        return _notice(gateway, "This link does not work", error.message, 404)
    text, action = describe(found.purpose)
    values = {"title": found.address, "server_name": gateway.server_name, "text": text, "action": action}
    # Browsers hold a form's target and where that leads to against the policy.
    parts = urlsplit(found.next_link or "")
    forms = f"{parts.scheme}://{parts.netloc}" if found.next_link else ""
    return page(gateway.ids, "confirm_address.html", values, forms=forms)


async def submit_validation_page(request: Request) -> Response:
    """Confirm the address, and lead back to where the client wanted."""
    gateway = gateway_of(request)
    try:
        found = await gateway.addresses.submit_token(*_credentials(request))
    except NotFound as error:
        return _notice(gateway, "This link does not work", error.message, 404)
    if found.next_link is not None:
        return RedirectResponse(found.next_link, 303, {"Referrer-Policy": "no-referrer"})
    return _notice(gateway, "Thank you", f"{found.address} is confirmed. You can go on in your app.", 200)


routes = [
    Route(f"/{VALIDATION_PATH}", get_validation_page, methods=["GET"]),
    Route(f"/{VALIDATION_PATH}", submit_validation_page, methods=["POST"]),
]


def _credentials(request: Request) -> tuple[str, str, str]:
    query = request.query_params
    return query.get("sid", ""), query.get("client_secret", ""), query.get("token", "")


def _notice(gateway: GatewayDeps, title: str, text: str, status: int) -> Response:
    values = {"title": title, "server_name": gateway.server_name, "text": text}
    return page(gateway.ids, "notice.html", values, status=status)

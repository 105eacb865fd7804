"""Discovery documents. Spec: C-S API §Well-known URIs; S-S API §Resolving server names."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.dependencies import gateway_of
from tessera.config import Settings
from tessera.http.errors import NotFound
from tessera.http.replies import json_reply


async def get_wellknown(request: Request) -> Response:
    """Where clients find this server."""
    document = client_wellknown(gateway_of(request).settings)
    if document is None:
        raise NotFound("No discovery information is configured (public_baseurl)")
    return json_reply(document)


async def get_server_wellknown(request: Request) -> Response:
    """Where other servers find this server."""
    settings = gateway_of(request).settings
    if not settings.serve_server_wellknown:
        raise NotFound("This server does not serve discovery information for other servers")
    host = settings.server_name.partition(":")[0]
    return json_reply({"m.server": f"{host}:443"})


async def get_wellknown_support(request: Request) -> Response:
    """Whom people can ask for help."""
    document = support_document(gateway_of(request).settings)
    if document is None:
        raise NotFound("No support information is configured (tessera.support)")
    return json_reply(document)


async def get_wellknown_policy(request: Request) -> Response:
    """The key for the m.room.policy of rooms that want this server as their policy server."""
    own = gateway_of(request).own_policy_server
    if own is None:
        raise NotFound("This server is no policy server")
    return json_reply({"public_keys": {"ed25519": own.key.public_key_base64}})


routes = [
    Route("/.well-known/matrix/client", get_wellknown, methods=["GET"]),
    Route("/.well-known/matrix/server", get_server_wellknown, methods=["GET"]),
    Route("/.well-known/matrix/policy_server", get_wellknown_policy, methods=["GET"]),
    Route("/.well-known/matrix/support", get_wellknown_support, methods=["GET"]),
]


def client_wellknown(settings: Settings) -> dict[str, Any] | None:
    """The discovery document for clients; None unless public_baseurl is set."""
    if settings.public_baseurl is None:
        return None
    document = {**settings.extra_well_known_client_content, "m.homeserver": {"base_url": str(settings.public_baseurl)}}
    if settings.default_identity_server is not None:
        document["m.identity_server"] = {"base_url": settings.default_identity_server}
    return document


def support_document(settings: Settings) -> dict[str, Any] | None:
    """Contacts and a page: `tessera.support`, and admin_contact where that names nobody."""
    support = settings.tessera.support
    contacts = [contact.model_dump(exclude_none=True) for contact in support.contacts]
    if not contacts and settings.admin_contact:
        contacts = [_contact_of(settings.admin_contact)]
    document: dict[str, Any] = {}
    if contacts:
        document["contacts"] = contacts
    if support.support_page is not None:
        document["support_page"] = support.support_page
    return document or None


def _contact_of(admin_contact: str) -> dict[str, str]:
    """admin_contact is a mailto: URI or a bare address, or a Matrix ID."""
    if admin_contact.startswith("@"):
        return {"role": "m.role.admin", "matrix_id": admin_contact}
    return {"role": "m.role.admin", "email_address": admin_contact.removeprefix("mailto:")}

"""What only administrators of the server may ask for. Spec: C-S API §Server Administration; Synapse's admin API."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from services.gateway.routing import Requester, requester_of
from tessera.http.errors import Forbidden

ADMIN_V1 = "/_synapse/admin/v1"
ADMIN_V2 = "/_synapse/admin/v2"


def require_admin(requester: Requester) -> Requester:
    """The requester, who is an administrator.

    Raises:
        Forbidden: no, or a session that acts for an application service.
    """
    if not requester.is_admin or requester.appservice_id is not None:
        raise Forbidden("You are not a server administrator")
    return requester


async def _admin_of(request: Request) -> Requester:
    return require_admin(await requester_of(request))


AdminRequester = Annotated[Requester, Depends(_admin_of)]

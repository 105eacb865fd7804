"""Who makes a request.

Spec: C-S API §Using access tokens, §Soft logout.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import Request

from matrixcore.identifiers import UserId
from tessera.http.errors import GuestAccessForbidden, MissingToken, UserLocked, UserSuspended
from tessera.http.guest_access import GUEST_OPERATIONS
from tessera.http.moderation import CLOSED_TO_SUSPENDED, OPEN_TO_LOCKED

_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Requester:
    """On whose behalf a request is made.

    Attributes:
        device_id: empty for an application service that asserts none.
        expires_ts: when the token ends, in milliseconds since the epoch; None for never.
        appservice_id: the application service that acts for the user.
        is_locked, is_suspended: what administrators have done to the account.
    """

    user_id: UserId
    device_id: str
    is_guest: bool = False
    is_admin: bool = False
    expires_ts: int | None = None
    appservice_id: str | None = None
    is_locked: bool = False
    is_suspended: bool = False


class Authenticator(Protocol):
    """What an application's `state.authenticator` is."""

    async def authenticate(self, request: Request) -> Requester:
        """The requester. Raises MissingToken or UnknownToken."""
        ...


def access_token_of(request: Request) -> str:
    """The token of a request, from the Authorization header or ?access_token=.

    Raises:
        MissingToken: there is none.
    """
    scope = request.scope
    token = ""
    # The bytes of the scope: a mapping of all headers or of the query costs more than the look at one.
    for name, value in scope["headers"]:
        if name == b"authorization":
            if value[: len(_BEARER)].lower() == _BEARER:
                token = value[len(_BEARER) :].decode("latin-1").strip()
            break
    if not token and b"access_token" in scope["query_string"]:
        token = request.query_params.get("access_token", "")
    if not token:
        raise MissingToken
    return token


async def authenticate(request: Request) -> Requester:
    """The requester of a request to an application with `state.authenticator`; for plain routes.

    Raises:
        MissingToken, UnknownToken
        GuestAccessForbidden: the endpoint is not for guests.
        UserLocked, UserSuspended: not for this account.
    """
    authenticator: Authenticator = request.app.state.authenticator
    requester = await authenticator.authenticate(request)
    if requester.is_guest and request.scope["tessera.operation"] not in GUEST_OPERATIONS:
        raise GuestAccessForbidden
    if requester.is_locked and request.scope["tessera.operation"] not in OPEN_TO_LOCKED:
        raise UserLocked
    if requester.is_suspended and request.scope["tessera.operation"] in CLOSED_TO_SUSPENDED:
        raise UserSuspended
    return requester


CurrentRequester = Annotated[Requester, Depends(authenticate)]

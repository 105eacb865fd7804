"""Who makes a request: access tokens to requesters.

Spec: C-S API §Using access tokens, §Soft logout.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import Request

from matrixcore.identifiers import UserId
from tessera.clock import Clock
from tessera.http.errors import GuestAccessForbidden, MissingToken, UnknownToken
from tessera.http.guest_access import GUEST_OPERATIONS

CACHE_SECONDS = 5.0  # DESIGN §2.6: how long a revoked token may live on in another process
MAX_CACHED_TOKENS = 50_000
MAX_TOKEN_LENGTH = 4096
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Requester:
    """On whose behalf a request is made.

    Attributes:
        device_id: empty for an application service that asserts none.
        expires_ts: when the token ends, in milliseconds since the epoch; None for never.
        appservice_id: the application service that acts for the user.
    """

    user_id: UserId
    device_id: str
    is_guest: bool = False
    is_admin: bool = False
    expires_ts: int | None = None
    appservice_id: str | None = None


class Authenticator(Protocol):
    """What an application's `state.authenticator` is."""

    async def authenticate(self, request: Request) -> Requester:
        """The requester. Raises MissingToken or UnknownToken."""
        ...


FindRequester = Callable[[str], Awaitable[Requester | None]]


class RequesterCache:
    """Requesters by token for at most five seconds, so that a busy client's token is looked up rarely.

    Unknown tokens are not kept: a client may present a token the moment after it got it.
    """

    def __init__(self, clock: Clock, find: FindRequester, *, max_tokens: int = MAX_CACHED_TOKENS) -> None:
        self._clock = clock
        self._find = find
        self._max_tokens = max_tokens
        self._cached: OrderedDict[str, tuple[float, Requester]] = OrderedDict()
        self._tokens: dict[UserId, set[str]] = {}  # of the cached ones, so that a logout need not look at all
        self._forgotten = 0

    async def get(self, token: str) -> Requester:
        """Whose token it is.

        Raises:
            UnknownToken: nobody's, or it has expired (`soft_logout`).
        """
        cached = self._cached.get(token)
        if cached is not None and self._clock.monotonic() < cached[0]:
            requester = cached[1]
        else:
            requester = await self._look_up(token)
        if requester.expires_ts is not None and requester.expires_ts <= self._clock.now_ms():
            self._drop(token)
            raise UnknownToken("The access token has expired", soft_logout=True)
        return requester

    def forget_device(self, user_id: UserId, device_id: str) -> None:
        """A session ended in this process: its tokens are dead at once."""
        self._forgotten += 1
        for token in list(self._tokens.get(user_id, ())):
            if self._cached[token][1].device_id == device_id:
                self._drop(token)

    def forget_user(self, user_id: UserId) -> None:
        """All sessions of a user ended in this process."""
        self._forgotten += 1
        for token in list(self._tokens.get(user_id, ())):
            self._drop(token)

    def __len__(self) -> int:
        return len(self._cached)

    async def _look_up(self, token: str) -> Requester:
        if len(token) > MAX_TOKEN_LENGTH:
            raise UnknownToken
        valid_until = self._clock.monotonic() + CACHE_SECONDS
        forgotten = self._forgotten
        requester = await self._find(token)
        self._drop(token)
        if requester is None:
            raise UnknownToken
        # What was read before a session ended must not be kept after it.
        if forgotten == self._forgotten:
            self._keep(token, valid_until, requester)
        return requester

    def _keep(self, token: str, valid_until: float, requester: Requester) -> None:
        self._cached[token] = (valid_until, requester)
        self._tokens.setdefault(requester.user_id, set()).add(token)
        if len(self._cached) > self._max_tokens:
            self._drop(next(iter(self._cached)))

    def _drop(self, token: str) -> None:
        cached = self._cached.pop(token, None)
        if cached is not None:
            tokens = self._tokens[cached[1].user_id]
            tokens.discard(token)
            if not tokens:
                del self._tokens[cached[1].user_id]


def access_token_of(request: Request) -> str:
    """The token of a request, from the Authorization header or ?access_token=.

    Raises:
        MissingToken: there is none.
    """
    header = request.headers.get("authorization")
    if header is not None and header[: len(_BEARER)].lower() == _BEARER:
        token = header[len(_BEARER) :].strip()
    else:
        # Building the query's mapping costs more than the look at its bytes.
        token = request.query_params.get("access_token", "") if b"access_token" in request.scope["query_string"] else ""
    if not token:
        raise MissingToken
    return token


async def authenticate(request: Request) -> Requester:
    """The requester of a request to an application with `state.authenticator`; for plain routes.

    Raises:
        MissingToken, UnknownToken
        GuestAccessForbidden: the endpoint is not for guests.
    """
    authenticator: Authenticator = request.app.state.authenticator
    requester = await authenticator.authenticate(request)
    if requester.is_guest and request.scope["tessera.operation"] not in GUEST_OPERATIONS:
        raise GuestAccessForbidden
    return requester


CurrentRequester = Annotated[Requester, Depends(authenticate)]

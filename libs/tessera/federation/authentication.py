"""Which server makes a request.

An application has a `PeerAuthenticator` at `state.peers`. FastAPI routes take `CurrentPeer`; plain routes use
`authenticated_peer`. Both read the body, since the signature covers it, and hand it on.

Spec: S-S API §Request Authentication.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from matrixcore.canonical_json import InvalidJson, encode_canonical_json, parse_exact_json, recode_canonical_json
from matrixcore.identifiers import ServerName
from tessera.clock import Clock
from tessera.federation.authorization_header import (
    Authorization,
    InvalidAuthorization,
    is_x_matrix,
    parse_authorization,
)
from tessera.federation.errors import BadSignature, KeyNotFound
from tessera.federation.keyring import Keyring
from tessera.federation.peer_limits import PeerLimits, UnprovenBodies
from tessera.federation.policy import FederationPolicy
from tessera.http.bodies import declared_length, read_body
from tessera.http.errors import BadJson, Forbidden, MatrixError, NotJson

# A transaction may hold 50 PDUs of 64 KiB each and 100 EDUs; a state of send_join comes in answers only.
MAX_BODY_BYTES = 10 << 20
_WITH_BODY = frozenset({"PUT", "POST"})


class Unauthorized(MatrixError):
    """The request is not proven to come from the server that it names."""

    errcode = "M_UNAUTHORIZED"
    status = 401


@dataclass(frozen=True, slots=True)
class Peer:
    """A request that a server has signed.

    Attributes:
        origin: the server.
        content: the body as it was parsed, {} for none. Numbers are exact, and may be of any kind.
        body: its bytes.
    """

    origin: ServerName
    content: Mapping[str, Any]
    body: bytes


class PeerAuthenticator:
    """Proves who asks, and says whether they may."""

    def __init__(
        self, server_name: ServerName, keyring: Keyring, policy: FederationPolicy, limits: PeerLimits, clock: Clock
    ) -> None:
        self._server_name = server_name
        self._keyring = keyring
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._bodies = UnprovenBodies()

    @asynccontextmanager
    async def admitted(self, request: Request, *, is_limited: bool = True) -> AsyncIterator[Peer]:
        """The peer of a request, which counts against the peer's limits until the block ends.

        Raises:
            Unauthorized: it is not signed as it should be. Forbidden: with this server we do not federate.
            LimitExceeded: the peer asks for too much at once.
            NotJson, BadJson, TooLarge: the body.
        """
        if not self._policy.enabled:
            raise Forbidden("This server does not federate")
        said = _authorization_of(request)
        if said.destination is not None and said.destination != self._server_name:
            raise Unauthorized("The request is for another server")
        if not self._policy.allows(said.origin):
            raise Forbidden("This server does not federate with yours")
        address = "" if request.client is None else request.client.host
        length = declared_length(request) if request.method in _WITH_BODY else 0
        with self._bodies.slot(address, length):
            # Proven first: a stranger must not use up what a peer may ask.
            peer = await self._verified(request, said)
            if not is_limited:
                yield peer
                return
            async with self._limits.slot(said.origin):
                yield peer

    async def _verified(self, request: Request, said: Authorization) -> Peer:
        body = await read_body(request, MAX_BODY_BYTES)
        content = _parsed(body) if body else None
        named = {"method": request.method, "origin": said.origin, "uri": _target_of(request)}
        if said.destination is not None:
            named["destination"] = said.destination
        try:
            message = encode_canonical_json(named)
            if content is not None:  # "content" comes first in canonical order
                message = b'{"content":' + recode_canonical_json(body, content) + b"," + message[1:]
        except InvalidJson as error:
            raise BadJson(str(error)) from None
        try:
            await self._keyring.verify_request(
                said.origin, message, said.key_id, said.signature, now_ms=self._clock.now_ms()
            )
        except (BadSignature, KeyNotFound) as error:
            raise Unauthorized(f"The signature proves nothing: {error}") from None
        return Peer(said.origin, content or {}, body)


async def authenticated_peer(request: Request) -> AsyncIterator[Peer]:
    """The peer of a request to an application with `state.peers`; a dependency of FastAPI routes."""
    peers: PeerAuthenticator = request.app.state.peers
    async with peers.admitted(request) as peer:
        yield peer


CurrentPeer = Annotated[Peer, Depends(authenticated_peer)]


def _authorization_of(request: Request) -> Authorization:
    headers = [
        text
        for name, value in request.scope["headers"]
        if name == b"authorization" and is_x_matrix(text := value.decode("latin-1"))
    ]
    if not headers:
        raise Unauthorized("Missing X-Matrix authorization")
    try:
        said = [parse_authorization(header) for header in headers[:5]]
    except InvalidAuthorization as error:
        raise Unauthorized(f"Authorization: {error}") from None
    # One for each key of the origin; any of them would do, and the first is as good as the others.
    if any(one.origin != said[0].origin for one in said):
        raise Unauthorized("Authorization: two origins")
    return said[0]


def _target_of(request: Request) -> str:
    """Path and query exactly as they were sent."""
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = parse_exact_json(body)
    except InvalidJson as error:
        raise NotJson(str(error)) from None
    if type(content) is not dict:
        raise BadJson("The body must be a JSON object")
    return content

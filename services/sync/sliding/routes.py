"""POST /sync, in the accepted form and in the experimental one that clients speak. Spec: MSC4186."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from services.sync.presence_keeping import PresenceKeeper
from services.sync.sliding.parsing import parse_request, with_query
from services.sync.sliding.request import MAX_BODY_BYTES, Form, SlidingRequest
from services.sync.sliding.sliding_sync import SlidingSync
from services.sync.sync_instance import SessionEnded
from services.sync.sync_request import read_query
from tessera.http.authentication import Requester, authenticate
from tessera.http.bodies import parse_json_object, read_body
from tessera.http.deadlines import deadline
from tessera.http.exchange import EXCHANGE, Exchange
from tessera.http.replies import json_bytes_reply

EXPERIMENTAL_PATH = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
ACCEPTED_PATH = "/_matrix/client/v4/sync"
MAX_REMEMBERED = 5_000  # bodies
MAX_REMEMBERED_BYTES = 4_096  # of one body

ForgetDevice = Callable[[UserId, str], None]


class SlidingRoutes:
    """The handlers.

    Args:
        forget_device: makes the authenticator look at a device's tokens anew.
    """

    def __init__(
        self, sliding: SlidingSync, presence: PresenceKeeper, *, forget_device: ForgetDevice | None = None
    ) -> None:
        self._sliding = sliding
        self._presence = presence
        self._forget_device = forget_device
        self._parsed: OrderedDict[tuple[UserId, str, bytes], SlidingRequest] = OrderedDict()

    @property
    def routes(self) -> list[Route]:
        """Both paths."""
        return [
            Route(EXPERIMENTAL_PATH, self._handler(Form.EXPERIMENTAL), methods=["POST"]),
            Route(ACCEPTED_PATH, self._handler(Form.ACCEPTED), methods=["POST"]),
        ]

    def _handler(self, form: Form) -> Callable[[Request], Awaitable[Response]]:
        @deadline(None)
        async def sliding_sync(request: Request) -> Response:
            return await self._answer(form, request)

        return sliding_sync

    async def _answer(self, form: Form, request: Request) -> Response:
        """What is new to a connection. Its only long wait is the one that the client asks for, which is bounded."""
        exchange: Exchange | None = request.scope.get(EXCHANGE)
        if exchange is not None:
            exchange.ends_with_client = True
        requester = await authenticate(request)
        raw = await read_body(request, MAX_BODY_BYTES)
        asked = self._parse(form, requester, read_query(request.scope["query_string"]), raw)
        await self._presence.note(requester.user_id, asked.set_presence)
        while True:
            try:
                return json_bytes_reply(await self._sliding.answer(asked))
            except SessionEnded:
                # The device logged out, or in again with another token: only its own token can tell.
                if self._forget_device is not None:
                    self._forget_device(requester.user_id, requester.device_id)
                await authenticate(request)

    def _parse(self, form: Form, requester: Requester, query: Mapping[str, str], raw: bytes) -> SlidingRequest:
        """The request; a client of the experimental form repeats its body, which is then parsed once."""
        key = (requester.user_id, requester.device_id, raw)
        known = self._parsed.get(key) if form is Form.EXPERIMENTAL else None
        if known is not None:
            self._parsed.move_to_end(key)
            return with_query(known, query)
        body = parse_json_object(raw, allow_floats=True) if raw else {}
        asked = parse_request(form, requester.user_id, requester.device_id, query, body, raw)
        if form is Form.EXPERIMENTAL and len(raw) <= MAX_REMEMBERED_BYTES:
            self._parsed[key] = asked
            if len(self._parsed) > MAX_REMEMBERED:
                self._parsed.popitem(last=False)
        return asked

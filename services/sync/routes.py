"""GET /sync and GET /keys/changes as plain routes. Spec: C-S API §Syncing, §End-to-end encryption."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.filters import Filter
from matrixcore.identifiers import UserId
from services.sync.keys_changes import list_key_changes
from services.sync.presence_keeping import PresenceKeeper
from services.sync.sync_instance import SessionEnded, SyncInstance
from services.sync.sync_request import (
    NO_FILTER,
    SyncRequest,
    parse_flag,
    parse_inline_filter,
    parse_set_presence,
    parse_since,
    parse_timeout,
    read_query,
    split_since,
)
from tessera.http.authentication import Requester, authenticate
from tessera.http.deadlines import deadline
from tessera.http.errors import InvalidParam, MissingParam
from tessera.http.exchange import EXCHANGE, Exchange
from tessera.http.replies import json_bytes_reply, json_reply
from tessera.storage import filters
from tessera.storage.database import Database

CLIENT_PREFIXES = ("/_matrix/client/v3", "/_matrix/client/r0")
MAX_FILTERS = 5_000
MAX_SHAPES = 5_000
MAX_SHAPE_LENGTH = 2_000  # bytes of a query that is remembered

Shape = tuple[Filter, int, bool, bool, str]
"""What a client's requests have in common: the fields of a `SyncRequest` behind `since_text`."""

Authenticate = Callable[[Request], Awaitable[Requester]]
ForgetDevice = Callable[[UserId, str], None]


class FilterCache:
    """Filters, parsed once: uploaded ones by ID, inline ones by their text."""

    def __init__(self, accounts: Database) -> None:
        self._accounts = accounts
        self._filters: OrderedDict[tuple[UserId | None, str], Filter] = OrderedDict()

    async def find(self, user_id: UserId, text: str | None) -> Filter:
        """The filter that a request names or holds. Raises InvalidParam or BadJson."""
        if not text:
            return NO_FILTER
        key = (None if text[0] == "{" else user_id, text)
        known = self._filters.get(key)
        if known is not None:
            return known
        if text[0] == "{":
            parsed = parse_inline_filter(text)
        else:
            async with self._accounts.reading() as tx:
                definition = await filters.find_filter(tx, user_id, text)
            if definition is None:
                raise InvalidParam("There is no such filter")
            parsed = parse_inline_filter(definition)
        self._filters[key] = parsed
        if len(self._filters) > MAX_FILTERS:
            self._filters.popitem(last=False)
        return parsed


class SyncRoutes:
    """The handlers; `routes` belong in front of the application's other routes.

    Args:
        forget_device: makes the authenticator look at a device's tokens anew.
    """

    def __init__(
        self,
        instance: SyncInstance,
        accounts: Database,
        presence: PresenceKeeper,
        *,
        forget_device: ForgetDevice | None = None,
    ) -> None:
        self._instance = instance
        self._accounts = accounts
        self._presence = presence
        self._filters = FilterCache(accounts)
        self._shapes: OrderedDict[tuple[UserId, bytes], Shape] = OrderedDict()  # by the query without `since`
        self._forget_device = forget_device

    @property
    def routes(self) -> list[Route]:
        """GET /sync and GET /keys/changes under v3 and r0."""
        handlers = (("/sync", self.sync), ("/keys/changes", self.get_keys_changes))
        return [
            Route(prefix + path, handler, methods=["GET"]) for path, handler in handlers for prefix in CLIENT_PREFIXES
        ]

    @deadline(None)
    async def sync(self, request: Request) -> Response:
        """What is new to the client. Its only long wait is the one that the client asks for, which is bounded."""
        exchange: Exchange | None = request.scope.get(EXCHANGE)
        if exchange is not None:
            exchange.ends_with_client = True
        requester = await authenticate(request)
        asked = await self._parse(request, requester)
        await self._presence.note(requester.user_id, asked.set_presence)
        while True:
            try:
                return json_bytes_reply(await self._instance.sync(asked))
            except SessionEnded:
                # The device logged out, or in again with another token: only its own token can tell.
                if self._forget_device is not None:
                    self._forget_device(requester.user_id, requester.device_id)
                await authenticate(request)

    async def get_keys_changes(self, request: Request) -> Response:
        """Whose devices changed between two sync tokens. Spec: C-S API §Tracking the device list for a user."""
        requester = await authenticate(request)
        query = request.query_params
        tokens = [parse_since(query.get(name)) for name in ("from", "to")]
        if tokens[0] is None or tokens[1] is None:
            raise MissingParam("from and to are needed")
        changed, left = await list_key_changes(self._instance.snapshots, requester.user_id, tokens[0], tokens[1])
        return json_reply({"changed": sorted(changed), "left": sorted(left)})

    async def _parse(self, request: Request, requester: Requester) -> SyncRequest:
        query_string: bytes = request.scope["query_string"]
        user_id = requester.user_id
        rest, since = split_since(query_string)
        if since is not None and (shape := self._shapes.get((user_id, rest))) is not None:
            return SyncRequest(user_id, requester.device_id, parse_since(since), since, *shape)
        query = read_query(query_string)
        shape = await self._read_shape(user_id, query)
        if (query.get("since") or "") == since and len(rest) <= MAX_SHAPE_LENGTH and b"access_token" not in rest:
            self._shapes[user_id, rest] = shape
            if len(self._shapes) > MAX_SHAPES:
                self._shapes.popitem(last=False)
        since = query.get("since") or ""
        return SyncRequest(user_id, requester.device_id, parse_since(since), since, *shape)

    async def _read_shape(self, user_id: UserId, query: Mapping[str, str]) -> Shape:
        return (
            await self._filters.find(user_id, query.get("filter")),
            parse_timeout(query),
            parse_flag(query, "full_state"),
            parse_flag(query, "use_state_after"),
            parse_set_presence(query),
        )

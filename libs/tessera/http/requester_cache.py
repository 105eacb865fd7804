"""Requesters by access token, so that a busy client's token is looked up rarely, and many clients' together.

One look-up runs at a time. Whoever comes meanwhile is in the next one, with all others who wait, and with the
tokens in use that are about to be too old: clients that wait for messages ask all the time, and do not each cost a
query every five seconds.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.clock import Clock
from tessera.http.authentication import Requester
from tessera.http.errors import Unavailable, UnknownToken

CACHE_SECONDS = 5.0  # DESIGN §2.6: how long a revoked token may live on in another process
AHEAD_SECONDS = 2.5  # a token in use that is too old in so long is looked up along with another
LEFT_SECONDS = 10.0  # one that has been too old for so long is not
MAX_CACHED_TOKENS = 50_000
MAX_TOKEN_LENGTH = 4096
MAX_TOGETHER = 500  # tokens of one look-up
MAX_WANTED = 5_000

FindRequesters = Callable[[Sequence[str]], Awaitable[Mapping[str, Requester]]]
"""The requesters of those of some tokens that are somebody's."""


@dataclass(slots=True)
class _Cached:
    requester: Requester
    valid_until: float
    is_used: bool = False  # since it was looked up


class RequesterCache:
    """Requesters by token for at most five seconds.

    Unknown tokens are not kept: a client may present a token the moment after it got it.
    """

    def __init__(self, clock: Clock, find: FindRequesters, *, max_tokens: int = MAX_CACHED_TOKENS) -> None:
        self._clock = clock
        self._find = find
        self._max_tokens = max_tokens
        self._cached: OrderedDict[str, _Cached] = OrderedDict()  # in the order of `valid_until`
        self._tokens: dict[UserId, set[str]] = {}  # of the cached ones, so that a logout need not look at all
        self._wanted: dict[str, asyncio.Future[Requester | Exception | None]] = {}
        self._looking_up = asyncio.Lock()
        self._forgotten: set[UserId] = set()  # since the look-up that runs began

    async def get(self, token: str) -> Requester:
        """Whose token it is.

        Raises:
            UnknownToken: nobody's, or it has expired (`soft_logout`).
            Unavailable: too many wait for a look-up.
        """
        cached = self._cached.get(token)
        if cached is not None and self._clock.monotonic() < cached.valid_until:
            cached.is_used = True
            requester = cached.requester
        else:
            requester = await self._look_up(token)
        if requester.expires_ts is not None and requester.expires_ts <= self._clock.now_ms():
            self._drop(token)
            raise UnknownToken("The access token has expired", soft_logout=True)
        return requester

    def forget_device(self, user_id: UserId, device_id: str) -> None:
        """A session ended in this process: its tokens are dead at once."""
        self._note_forgotten(user_id)
        for token in list(self._tokens.get(user_id, ())):
            if self._cached[token].requester.device_id == device_id:
                self._drop(token)

    def forget_user(self, user_id: UserId) -> None:
        """All sessions of a user ended in this process."""
        self._note_forgotten(user_id)
        for token in list(self._tokens.get(user_id, ())):
            self._drop(token)

    def _note_forgotten(self, user_id: UserId) -> None:
        if self._looking_up.locked():
            self._forgotten.add(user_id)

    def __len__(self) -> int:
        return len(self._cached)

    async def _look_up(self, token: str) -> Requester:
        if len(token) > MAX_TOKEN_LENGTH:
            raise UnknownToken
        wanted = self._wanted.get(token)
        if wanted is None:
            if len(self._wanted) >= MAX_WANTED:
                raise Unavailable
            wanted = self._wanted[token] = asyncio.get_running_loop().create_future()
        async with self._looking_up:
            if not wanted.done():
                await self._look_up_wanted(token)
        found = wanted.result()
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise UnknownToken
        return found

    async def _look_up_wanted(self, first: str) -> None:
        """Settle what is wanted, `first` in any case."""
        now = self._clock.monotonic()
        tokens = dict.fromkeys([first, *self._wanted])
        tokens = dict.fromkeys(list(tokens)[:MAX_TOGETHER])
        self._add_aging(tokens, now)
        self._forgotten.clear()
        found: Mapping[str, Requester] = {}
        failure: Exception | None = None
        try:
            found = await self._find(list(tokens))
        except Exception as error:  # theirs, who each raise it; a query for each of them would end no better
            failure = error
        for token in tokens:
            requester = found.get(token)
            if failure is None:
                self._drop(token)
                # What was read before a session ended must not be kept after it.
                if requester is not None and requester.user_id not in self._forgotten:
                    self._keep(token, _Cached(requester, now + CACHE_SECONDS))
            wanted = self._wanted.pop(token, None)
            if wanted is not None:
                wanted.set_result(failure or requester)

    def _add_aging(self, tokens: dict[str, None], now: float) -> None:
        """Add the tokens in use that are too old soon; the others go, so that each is looked at here once."""
        left = []
        for token, cached in self._cached.items():
            if cached.valid_until > now + AHEAD_SECONDS or len(tokens) >= MAX_TOGETHER:
                break
            if cached.is_used and cached.valid_until > now - LEFT_SECONDS:
                tokens[token] = None
            else:
                left.append(token)
        for token in left:
            self._drop(token)

    def _keep(self, token: str, cached: _Cached) -> None:
        self._cached[token] = cached
        self._tokens.setdefault(cached.requester.user_id, set()).add(token)
        if len(self._cached) > self._max_tokens:
            self._drop(next(iter(self._cached)))

    def _drop(self, token: str) -> None:
        cached = self._cached.pop(token, None)
        if cached is not None:
            user_id = cached.requester.user_id
            tokens = self._tokens[user_id]
            tokens.discard(token)
            if not tokens:
                del self._tokens[user_id]

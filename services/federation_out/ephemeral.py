"""Typing and presence on their way to other servers: in memory only, the newest of each subject, and soon forgotten.

Spec: S-S API §Typing Notifications, §Presence.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import RoomId, ServerName, UserId, server_of
from services.federation_out import metrics
from services.federation_out.room_servers import RoomServers
from tessera.clock import Clock
from tessera.federation.policy import FederationPolicy
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.federation_queue import bucket_of
from tessera.storage.presence import Presence
from tessera.wakes import PresenceChange, TypingChange

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.1
MAX_CHANGES = 10_000  # not yet addressed
MAX_DESTINATIONS = 10_000
MAX_SUBJECTS = 100  # of one destination
MAX_TYPISTS = 20_000
MAX_USERS = 50_000
TYPING_AGAIN_SECONDS = 40.0  # peers forget who types after a minute
PRESENCE_AGAIN_SECONDS = 300.0


@dataclass(slots=True)
class _Typist:
    sent: float
    until: float


@dataclass(slots=True)
class _Waiting:
    """What waits for one destination."""

    typing: dict[tuple[RoomId, UserId], bool] = field(default_factory=dict)
    presence: dict[UserId, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.typing) + len(self.presence)


class EphemeralEdus:
    """Hears what local users do and keeps it for the destinations of this process's buckets.

    Attributes:
        buckets: those of this process.
    """

    def __init__(
        self, servers: RoomServers, policy: FederationPolicy, clock: Clock, server_name: ServerName, buckets: int
    ) -> None:
        self.buckets: frozenset[int] = frozenset()
        self._count = buckets
        self._servers = servers
        self._policy = policy
        self._clock = clock
        self._server_name = server_name
        self._typists: OrderedDict[tuple[RoomId, UserId], _Typist] = OrderedDict()
        self._told: OrderedDict[UserId, tuple[tuple[str, str | None, bool], float]] = OrderedDict()
        self._typing: dict[tuple[RoomId, UserId], bool] = {}
        self._presence: dict[UserId, PresenceChange] = {}
        self._waiting: OrderedDict[ServerName, _Waiting] = OrderedDict()
        self._heard = asyncio.Event()

    def on_typing(self, change: TypingChange) -> None:
        """A user types, or no longer does; a client's repetitions are passed on now and then."""
        if server_of(change.user_id) != self._server_name:
            return
        key, now = (change.room_id, change.user_id), self._clock.monotonic()
        known = self._typists.get(key)
        if change.timeout_ms <= 0:
            if known is not None:
                del self._typists[key]
                self._note_typing(key, typing=False)
            return
        until = now + change.timeout_ms / 1000
        if known is not None and now - known.sent < TYPING_AGAIN_SECONDS:
            known.until = until
            return
        self._typists[key] = _Typist(now, until)
        if len(self._typists) > MAX_TYPISTS:
            self._typists.popitem(last=False)
        self._note_typing(key, typing=True)

    def on_presence(self, change: PresenceChange) -> None:
        """A user's presence; one that says nothing new is passed on now and then."""
        if server_of(change.user_id) != self._server_name:
            return
        now = self._clock.monotonic()
        state = (change.presence, change.status_msg, change.currently_active)
        told = self._told.get(change.user_id)
        if told is not None and told[0] == state and now - told[1] < PRESENCE_AGAIN_SECONDS:
            return
        self._told[change.user_id] = (state, now)
        self._told.move_to_end(change.user_id)
        if len(self._told) > MAX_USERS:
            self._told.popitem(last=False)
        if len(self._presence) < MAX_CHANGES:
            self._presence[change.user_id] = change
            self._heard.set()

    def remind(self, states: Iterable[Presence]) -> None:
        """Local users' presence once more, though it has not changed; what is newer and waits stays."""
        for user_id, state, status_msg, active_ms in states:
            if len(self._presence) >= MAX_CHANGES:
                return
            change = PresenceChange(user_id, state, status_msg, active_ms, state == "online")
            self._presence.setdefault(user_id, change)
            self._heard.set()

    async def run(self, wake: Callable[[], Awaitable[None]]) -> None:
        """Address what was heard, for ever; `wake` is called when something waits for somebody."""
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._heard.wait()
                await self._clock.sleep(GATHER_SECONDS)
            except TimeoutError:
                pass
            self._heard.clear()
            self._expire()
            try:
                if await self.address():
                    await wake()
            except DatabaseUnavailable as error:
                log.info("typing and presence not sent", error=str(error))
            metrics.QUEUED_EPHEMERAL.set(len(self._waiting))

    async def address(self) -> bool:
        """Give what was heard to its destinations; whether there are any. Raises DatabaseUnavailable."""
        typing, self._typing = self._typing, {}
        presence, self._presence = self._presence, {}
        if not self.buckets or not (typing or presence):
            return False
        given = False
        if typing:
            rooms = await self._servers.find(list(dict.fromkeys(room_id for room_id, _ in typing)))
            for key, is_typing in typing.items():
                for server in rooms[key[0]]:
                    if (waiting := self._of(server)) is not None:
                        waiting.typing[key] = is_typing
                        given = True
        if presence:
            servers = await self._servers.find_of_users(list(presence))
            for user_id, change in presence.items():
                for server in servers[user_id]:
                    if (waiting := self._of(server)) is not None:
                        waiting.presence[user_id] = self._push_of(change)
                        given = True
        return given

    def list_waiting(self) -> list[ServerName]:
        """The destinations for which something waits, longest first."""
        return list(self._waiting)

    def take(self, destination: ServerName, places: int) -> list[bytes]:
        """The destination's EDUs; what does not fit is dropped, for it is old by the next time."""
        if places <= 0:
            return []
        waiting = self._waiting.pop(destination, None)
        if waiting is None:
            return []
        edus: list[Mapping[str, Any]] = [
            {"edu_type": "m.typing", "content": {"room_id": room_id, "user_id": user_id, "typing": is_typing}}
            for (room_id, user_id), is_typing in waiting.typing.items()
        ]
        if waiting.presence:
            edus.insert(0, {"edu_type": "m.presence", "content": {"push": list(waiting.presence.values())}})
        return [encode_canonical_json(edu) for edu in edus[:places]]

    def _note_typing(self, key: tuple[RoomId, UserId], *, typing: bool) -> None:
        if len(self._typing) < MAX_CHANGES:
            self._typing[key] = typing
            self._heard.set()

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for key in [key for key, typist in self._typists.items() if typist.until <= now]:
            del self._typists[key]
            self._note_typing(key, typing=False)

    def _of(self, server: ServerName) -> _Waiting | None:
        """What waits for a destination; None if it is not this process's, or there is no room for more."""
        waiting = self._waiting.get(server)
        if waiting is None:
            if bucket_of(server, self._count) not in self.buckets or not self._policy.allows(server):
                return None
            if len(self._waiting) >= MAX_DESTINATIONS:
                self._waiting.popitem(last=False)
            waiting = self._waiting[server] = _Waiting()
        return waiting if len(waiting) < MAX_SUBJECTS else None

    def _push_of(self, change: PresenceChange) -> dict[str, Any]:
        push: dict[str, Any] = {
            "user_id": change.user_id,
            "presence": change.presence,
            "last_active_ago": max(0, self._clock.now_ms() - change.last_active_ms),
            "currently_active": change.currently_active,
        }
        if change.status_msg is not None:
            push["status_msg"] = change.status_msg
        return push

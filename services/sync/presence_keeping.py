"""Presence that follows from syncing: online while a client asks, offline some time after the last did.

Written and published only where it changes, or once in REFRESH_SECONDS; a user's idle clients cost nothing.

Spec: C-S API §Presence, §Syncing (set_presence).
"""

from collections import OrderedDict
from dataclasses import dataclass

import structlog

from matrixcore.identifiers import UserId
from tessera.clock import Clock
from tessera.fanout import Fanout, PresenceChange
from tessera.storage import presence
from tessera.storage.database import Database, DatabaseUnavailable

log = structlog.get_logger(__name__)

OFFLINE_SECONDS = 150.0  # longer than the longest wait of a request
REFRESH_SECONDS = 60.0
SWEEP_SECONDS = 15.0
MAX_USERS = 50_000


@dataclass(slots=True)
class _Known:
    state: str
    seen: float
    written: float


class PresenceKeeper:
    """The presence of the users who sync here."""

    def __init__(self, accounts: Database, fanout: Fanout, clock: Clock, *, enabled: bool = True) -> None:
        self._accounts = accounts
        self._fanout = fanout
        self._clock = clock
        self._enabled = enabled
        self._users: OrderedDict[UserId, _Known] = OrderedDict()

    async def note(self, user_id: UserId, state: str) -> None:
        """A client of the user asks, and wants this state; "offline" leaves everything as it is."""
        if not self._enabled or state == "offline":
            return
        now = self._clock.monotonic()
        known = self._users.get(user_id)
        if known is not None:
            known.seen = now
            self._users.move_to_end(user_id)
            if known.state == state and now - known.written < REFRESH_SECONDS:
                return
        self._users[user_id] = _Known(state, now, now)
        if len(self._users) > MAX_USERS:
            self._users.popitem(last=False)
        await self._write(user_id, state, is_active=True)

    async def run(self) -> None:
        """Run for ever: users who no longer ask go offline."""
        while self._enabled:
            await self._clock.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:  # presence is never worth the service
                log.warning("presence not swept", exc_info=True)

    async def sweep(self) -> None:
        """Set those offline whose clients have been silent for too long."""
        limit = self._clock.monotonic() - OFFLINE_SECONDS
        gone = []
        for user_id, known in self._users.items():  # in the order of their last requests
            if known.seen > limit:
                break
            gone.append(user_id)
        for user_id in gone:
            del self._users[user_id]
            await self._write(user_id, "offline", is_active=False)

    async def _write(self, user_id: UserId, state: str, *, is_active: bool) -> None:
        now_ms = self._clock.now_ms()
        try:
            async with self._accounts.reading() as tx:
                before = await presence.find_presence(tx, user_id)
                active_ms = now_ms if is_active or before is None else before.last_active_ts
                status = await presence.set_state(tx, user_id, state, active_ms)
        except DatabaseUnavailable:
            log.warning("presence not stored", state=state)
            return
        if before is None or before.presence != state:
            await self._fanout.publish_presence(PresenceChange(user_id, state, status, active_ms, state == "online"))

"""When devices were last seen: noted at each request, written together once in a while.

Lost on a crash by at most one interval, which nobody minds: it is what people see in their lists of devices.

Spec: C-S API §Device management, last_seen_ts and last_seen_ip.
"""

from collections import OrderedDict

import structlog

from matrixcore.identifiers import UserId
from tessera.clock import Clock
from tessera.storage import devices
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.devices import LastSeen

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 20.0
REPEAT_MS = 120_000  # a device in steady use is written this often
REMEMBERED = 50_000  # devices; beyond that the longest unseen are forgotten
FLUSHED_AT_ONCE = 5_000


class LastSeenRecorder:
    """Collects and writes; `note` is cheap enough for every request."""

    def __init__(self, accounts: Database, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock
        self._pending: dict[tuple[UserId, str], LastSeen] = {}
        self._written: OrderedDict[tuple[UserId, str], LastSeen] = OrderedDict()

    def note(self, user_id: UserId, device_id: str, ip: str | None) -> None:
        """The device made a request now."""
        key = (user_id, device_id)
        now_ms = self._clock.now_ms()
        written = self._written.get(key)
        if written is not None and written.ip == ip and now_ms - written.ts < REPEAT_MS:
            return
        if len(self._pending) < REMEMBERED or key in self._pending:
            self._pending[key] = LastSeen(now_ms, ip)

    async def flush(self) -> int:
        """Write what was noted, in few statements; answers how many devices. What fails is tried again later."""
        pending, self._pending = self._pending, {}
        keys = sorted(pending)
        for start in range(0, len(keys), FLUSHED_AT_ONCE):
            part = {key: pending[key] for key in keys[start : start + FLUSHED_AT_ONCE]}
            try:
                async with self._accounts.reading() as tx:
                    await devices.set_last_seen(tx, part)
            except DatabaseUnavailable:
                self._pending = {**{key: pending[key] for key in keys[start:]}, **self._pending}
                raise
            self._remember(part)
        return len(keys)

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
            except DatabaseUnavailable:
                log.warning("last seen not written")

    def _remember(self, written: dict[tuple[UserId, str], LastSeen]) -> None:
        for key, seen in written.items():
            self._written[key] = seen
            self._written.move_to_end(key)
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)

"""What is noted when a waiting request is answered: how long it took, and the spans of messages that are followed.

Only requests that were waiting count. A client that comes back after an hour gets hour-old messages at once; its
absence is not our delay.

Spec: none; DESIGN.md sections 9 and 12.
"""

from collections import OrderedDict
from collections.abc import Collection

from services.sync import metrics
from services.sync.room_tails import RoomTail
from tessera import tracing
from tessera.clock import Clock
from tessera.partition_groups import PARTITION_GROUPS, partition_group
from tessera.records import EventBody, LogRecord
from tessera.sync_token import SyncToken

MAX_SPANS = 16  # of one message in this process: a room of thousands need not fill a collector
MAX_FOLLOWED = 1_000

_DELIVERY = tuple(metrics.DELIVERY.labels(partition_group(group)) for group in range(PARTITION_GROUPS))


class Deliveries:
    """Notes what answers bring to whom waited."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: OrderedDict[tuple[int, int], int] = OrderedDict()

    def note(self, tails: Collection[RoomTail], since: SyncToken) -> None:
        """A request that was woken by these rooms has its answer, which brings what they have after its token.

        The clocks compared here, the gateway's that accepted and ours, are two machines': for the figures alone.
        """
        if not tails:
            return
        now_ms, now = self._clock.now_ms(), self._clock.monotonic()
        metrics.WAKE_SECONDS.observe(max(0.0, now - min(tail.heard_at for tail in tails)))
        is_traced = tracing.is_on()
        for tail in tails:
            point = since.positions.get(tail.partition)
            if point is None:
                continue
            child = _DELIVERY[tail.partition % PARTITION_GROUPS]
            for record in tail.after(point.position):
                body = record.body
                if isinstance(body, EventBody) and body.sender_device is not None:  # one that a gateway here accepted
                    child.observe(max(0, now_ms - body.origin_server_ts) / 1000)
                if is_traced and record.traceparent:
                    self._trace(record, now - tail.heard_at, now_ms)

    def _trace(self, record: LogRecord, waited_seconds: float, now_ms: int) -> None:
        key = (record.partition, record.position)
        count = self._spans.get(key, 0)
        if count >= MAX_SPANS:
            return
        self._spans[key] = count + 1
        if len(self._spans) > MAX_FOLLOWED:
            self._spans.popitem(last=False)
        tracing.note_delivery(record, waited_seconds, now_ms)

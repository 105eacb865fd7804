"""Tokens that say more than PostgreSQL: it was put back to an older backup, or lost commits in a fail-over.

Whoever reads this from PostgreSQL itself, in the snapshot of the answer, tells the client everything anew that may be
other than what it was told: rooms of such a partition as limited, all rooms if it is the user's log. What memory
holds proves nothing: a process may be behind its hints.

Spec: none; DESIGN.md section 2 (15).
"""

from collections.abc import Collection, Mapping

import structlog

from services.sync import metrics
from tessera.storage.sync_accounts import UserOverview
from tessera.sync_token import Point, SyncToken

log = structlog.get_logger(__name__)


def list_suspects(since: SyncToken | None, heads: Mapping[int, Point]) -> dict[int, Point]:
    """What a token says of partitions whose heads are below that."""
    if since is None:
        return {}
    return {partition: point for partition, point in since.positions.items() if heads.get(partition, point) < point}


def tell(since: SyncToken, overview: UserOverview, partitions: Collection[int]) -> None:
    """Count and log what a token has ahead of PostgreSQL; each token does so once, as its successor has not."""
    lost = {
        "partition": len(partitions),
        "user": max(since.user, since.to_device) - overview.log_head,
        "devices": since.devices - overview.devices_head,
    }
    streams = [stream for stream, count in lost.items() if count > 0]
    for stream in streams:
        metrics.TOKENS_AHEAD.labels(stream).inc()
    if streams:
        log.error(
            "a sync token is ahead of PostgreSQL, which was restored or failed over with loss",
            partitions=sorted(partitions),
            user_log_lost=max(0, lost["user"]),
            devices_lost=max(0, lost["devices"]),
        )

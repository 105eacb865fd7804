"""Devices that nobody has used for longer than delete_stale_devices_after are logged out and deleted.

Spec: C-S API §Device management, "the server may delete devices on its own".
"""

import structlog

from services.gateway.dependencies import GatewayDeps
from services.gateway.logout import end_sessions
from tessera.clock import Clock
from tessera.storage import devices
from tessera.storage.database import DatabaseUnavailable

SWEEP_SECONDS = 3_600.0
DEVICES_AT_ONCE = 200

log = structlog.get_logger(__name__)


async def run(gateway: GatewayDeps, clock: Clock) -> None:
    """Look once an hour, for ever; returns at once if the operator keeps all devices."""
    lifetime_ms = gateway.settings.delete_stale_devices_after
    if lifetime_ms is None:
        return
    while True:
        await clock.sleep(SWEEP_SECONDS)
        try:
            await delete_stale(gateway, before_ms=clock.now_ms() - lifetime_ms)
        except DatabaseUnavailable:
            log.warning("stale devices not looked for")


async def delete_stale(gateway: GatewayDeps, *, before_ms: int) -> int:
    """Delete the devices that were last used before that moment; answers how many."""
    deleted = 0
    while True:
        async with gateway.accounts.reading() as tx:
            stale = await devices.list_unused_since(tx, before_ms, DEVICES_AT_ONCE)
        for user_id, device_ids in stale.items():
            await end_sessions(gateway, user_id, device_ids)
            deleted += len(device_ids)
        if not stale:
            if deleted:
                log.info("stale devices deleted", count=deleted)
            return deleted

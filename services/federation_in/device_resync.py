"""Asking other servers for whole device lists where updates were missed.

Spec: S-S API §Device Management, "resync".
"""

import asyncio

import structlog

from matrixcore.identifiers import ServerName, UserId, server_of
from tessera.clock import Clock
from tessera.fanout import Fanout
from tessera.federation.client import FederationClient, endpoint
from tessera.federation.device_answers import parse_device_answer
from tessera.federation.errors import PeerError
from tessera.storage import device_changes, remote_devices
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.device_changes import DeviceChange
from tessera.storage.remote_devices import StaleList
from tessera.storage.shards import RoomShards
from tessera.wakes import DeviceWake

log = structlog.get_logger(__name__)

AT_ONCE = 20
LOOK_SECONDS = 2.0
ANSWER_SECONDS = 20.0
MAX_ANSWER_BYTES = 4 << 20
PATH = "/_matrix/federation/v1/user/devices/{}"


class DeviceResync:
    """Asks for stale lists, a few at once; each is asked for again at growing intervals until it is answered."""

    def __init__(
        self,
        accounts: Database,
        shards: RoomShards,
        client: FederationClient,
        fanout: Fanout,
        clock: Clock,
        server_name: ServerName,
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._client = client
        self._fanout = fanout
        self._clock = clock
        self._server_name = server_name

    async def run(self) -> None:
        """Run for ever; a store that is away is waited for."""
        while True:
            try:
                asked = await self.ask_stale()
            except DatabaseUnavailable as error:
                log.info("device lists are not asked for", error=str(error))
                asked = 0
            if asked < AT_ONCE:
                await self._clock.sleep(LOOK_SECONDS)

    async def ask_stale(self) -> int:
        """Ask for some lists; how many there were. Raises DatabaseUnavailable."""
        async with self._accounts.reading() as tx:
            stale = await remote_devices.take_stale(tx, AT_ONCE)
        if not stale:
            return 0
        users = [one.user_id for one in stale]
        sharing: set[UserId] = set()
        for database in self._shards.databases.values():
            async with database.reading() as tx:
                sharing |= await remote_devices.list_sharing(tx, users, self._server_name)
        if strangers := [user_id for user_id in users if user_id not in sharing]:
            async with self._accounts.transaction() as tx:
                await remote_devices.forget(tx, strangers)
        await asyncio.gather(*(self._ask(one) for one in stale if one.user_id in sharing))
        return len(stale)

    async def _ask(self, stale: StaleList) -> None:
        user_id = stale.user_id
        try:
            answer = await self._client.get(
                server_of(user_id), endpoint(PATH, user_id), timeout_s=ANSWER_SECONDS, max_bytes=MAX_ANSWER_BYTES
            )
        except PeerError as error:
            log.info("device list not answered", user_id=user_id, error=str(error))
            return
        parsed = parse_device_answer(user_id, answer)
        if parsed is None:
            log.info("device list of no use", user_id=user_id)
            return
        position = None
        async with self._accounts.transaction() as tx:
            keys = (parsed.master_key, parsed.self_signing_key)
            known = (await remote_devices.list_lists(tx, [user_id])).get(user_id)
            is_other = await remote_devices.replace_list(
                tx, user_id, stale.changed, parsed.stream_id, parsed.devices, keys
            )
            # Who asked before may have been served what was old, or nothing as the server was dead.
            if is_other and (stale.attempts > 1 or (known is not None and known.stream_id > 0)):
                position = await device_changes.add_changes(tx, [DeviceChange(user_id)])
        if position is not None:
            await self._fanout.publish_device_wake(DeviceWake(position, (user_id,)))

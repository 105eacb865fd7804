"""EDUs of other servers that must not be lost: to-device messages, device lists, cross-signing keys.

They lie in PostgreSQL before their transaction is answered; each takes effect in the transaction that deletes it.

Spec: S-S API §Send-to-device messaging, §Device Management, §End-to-End Encryption.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import orjson
import structlog

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_user_id, server_of
from tessera.clock import Clock
from tessera.fanout import Fanout
from tessera.federation.device_answers import check_device, check_signing_key, is_device_id, is_stream_id
from tessera.storage import device_changes, received_transactions, remote_devices, to_device, user_log
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.device_changes import DeviceChange
from tessera.storage.received_transactions import ReceivedEdu
from tessera.storage.remote_devices import RemoteUpdate
from tessera.storage.shards import RoomShards
from tessera.storage.to_device import OutgoingMessage
from tessera.wakes import DeviceWake

log = structlog.get_logger(__name__)

BATCH = 50
LOOK_SECONDS = 5.0
PAUSE_SECONDS = 1.0
MAX_RECIPIENTS = 1_000  # devices of one message
MAX_CONTENT_BYTES = 128 << 10
MAX_TYPE = 255
EVERY_DEVICE = "*"


@dataclass(slots=True)
class _Effects:
    """What is to be told after the commit."""

    heads: dict[UserId, int] = field(default_factory=dict)
    changed: list[DeviceChange] = field(default_factory=list)


class StoredEdus:
    """Works off what transactions have stored; several processes may."""

    def __init__(
        self, accounts: Database, shards: RoomShards, fanout: Fanout, clock: Clock, server_name: ServerName
    ) -> None:
        self._accounts = accounts
        self._shards = shards
        self._fanout = fanout
        self._clock = clock
        self._server_name = server_name
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something has been stored."""
        self._woken.set()

    async def run(self) -> None:
        """Run for ever; a store that is away is waited for."""
        while True:
            self._woken.clear()
            try:
                while await self.work_off():
                    pass
            except DatabaseUnavailable as error:
                log.warning("EDUs wait", error=str(error))
                await self._clock.sleep(PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._woken.wait()

    async def work_off(self) -> bool:
        """Let some EDUs take effect, to-device messages one by one; whether any did. Raises DatabaseUnavailable.

        One that breaks this is dropped, so that the others go on. Those of a server of which another process has some
        are left to it, or they would overtake them.
        """
        async with self._accounts.reading() as tx:
            waiting = await received_transactions.list_edus(tx, BATCH)
        if not waiting:
            return False
        sharing = await self._sharing(waiting)
        elsewhere: set[ServerName] = set()
        taken = 0
        for group in _groups(waiting):
            try:
                taken += await self._apply(group, sharing, elsewhere)
            except DatabaseUnavailable:
                raise
            except Exception:  # two processes may have locked the same users in another order, too
                log.warning("EDUs are taken one by one", origin=group[0].origin, exc_info=True)
                for one in group:
                    taken += await self._apply_or_drop(one, sharing, elsewhere)
        return taken > 0

    async def _apply_or_drop(self, one: ReceivedEdu, sharing: set[UserId], elsewhere: set[ServerName]) -> int:
        try:
            return await self._apply([one], sharing, elsewhere)
        except DatabaseUnavailable:
            raise
        except Exception:
            log.exception("EDU dropped", origin=one.origin, edu_type=one.edu.get("edu_type"))
            async with self._accounts.transaction() as tx:
                await received_transactions.delete_edus(tx, [one.edu_id])
            return 1

    async def _sharing(self, waiting: Sequence[ReceivedEdu]) -> set[UserId]:
        """The users of key changes who share a room with somebody here."""
        users = {
            user_id
            for one in waiting
            if one.edu["edu_type"] != "m.direct_to_device"
            and (user_id := _user_of(one.origin, one.edu["content"].get("user_id"))) is not None
        }
        sharing: set[UserId] = set()
        if users:
            for database in self._shards.databases.values():
                async with database.reading() as tx:
                    sharing |= await remote_devices.list_sharing(tx, sorted(users), self._server_name)
        return sharing

    async def _apply(self, group: Sequence[ReceivedEdu], sharing: set[UserId], elsewhere: set[ServerName]) -> int:
        """How many took effect; the servers of those that another process has are added to `elsewhere`."""
        effects, position = _Effects(), None
        async with self._accounts.transaction() as tx:
            free = set(await received_transactions.lock_edus(tx, [one.edu_id for one in group]))
            done: list[int] = []
            for one in group:
                if one.edu_id not in free:
                    elsewhere.add(one.origin)
                if one.origin in elsewhere:
                    continue
                done.append(one.edu_id)
                content = one.edu["content"]
                match one.edu["edu_type"]:
                    case "m.direct_to_device":
                        await self._take_message(tx, one.origin, content, effects)
                    case "m.device_list_update":
                        await _take_device(tx, one.origin, content, sharing, effects)
                    case _:
                        await _take_signing_keys(tx, one.origin, content, sharing, effects)
            await received_transactions.delete_edus(tx, done)
            if effects.changed:
                position = await device_changes.add_changes(tx, effects.changed)
        if effects.heads:
            await self._fanout.publish_user_wakes(user_log.wakes_of(effects.heads))
        if position is not None:
            users = tuple(dict.fromkeys(change.user_id for change in effects.changed))
            await self._fanout.publish_device_wake(DeviceWake(position, users))
        return len(done)

    async def _take_message(
        self, tx: Transaction, origin: ServerName, content: Mapping[str, Any], effects: _Effects
    ) -> None:
        """Put a message into its devices' inboxes, once for the origin and its ID."""
        sender = _user_of(origin, content.get("sender"))
        event_type, message_id, messages = content.get("type"), content.get("message_id"), content.get("messages")
        if sender is None or not _is_name(event_type) or not _is_name(message_id) or not isinstance(messages, Mapping):
            return
        # The origin is no user ID, so that this cannot meet a client's transaction.
        scope = UserId(origin)
        if not await to_device.claim_transaction(tx, scope, "", "", message_id, self._clock.now_ms()):
            return
        addressed = await self._address(tx, messages)
        effects.heads |= await to_device.add_messages(tx, sender, event_type, addressed)

    async def _address(self, tx: Transaction, messages: Mapping[str, Any]) -> list[OutgoingMessage]:
        """One message for each device of ours that is meant and exists."""
        single: dict[tuple[UserId, str], bytes] = {}
        everywhere: dict[UserId, bytes] = {}
        for name, devices in messages.items():
            user_id = _user_of(self._server_name, name)
            if user_id is None or not isinstance(devices, Mapping):
                continue
            for device_id, content in devices.items():
                if not isinstance(content, Mapping) or len(single) + len(everywhere) >= MAX_RECIPIENTS:
                    continue
                if len(dumped := orjson.dumps(content)) > MAX_CONTENT_BYTES:
                    continue
                if device_id == EVERY_DEVICE:
                    everywhere[user_id] = dumped
                elif is_device_id(device_id):
                    single[user_id, device_id] = dumped
        addressed: dict[tuple[UserId, str], bytes] = {}
        if everywhere:
            for user_id, device_id in await to_device.list_devices_of(tx, list(everywhere)):
                addressed[user_id, device_id] = everywhere[user_id]
        if single:
            for known in await to_device.list_known_devices(tx, single):
                addressed[known] = single[known]
        return [OutgoingMessage(user, device, content) for (user, device), content in sorted(addressed.items())]


async def _take_device(
    tx: Transaction, origin: ServerName, content: Mapping[str, Any], sharing: set[UserId], effects: _Effects
) -> None:
    user_id, device_id = _user_of(origin, content.get("user_id")), content.get("device_id")
    stream_id, previous = content.get("stream_id"), content.get("prev_id", [])
    if user_id not in sharing or user_id is None or not is_device_id(device_id) or not is_stream_id(stream_id):
        return
    if not isinstance(previous, list) or not all(map(is_stream_id, previous)):
        return
    keys = None
    if content.get("deleted") is not True:
        keys = check_device(user_id, device_id, content.get("keys"), content.get("device_display_name"))
    await remote_devices.apply_update(tx, RemoteUpdate(user_id, device_id, stream_id, tuple(previous), keys))
    effects.changed.append(DeviceChange(user_id, device_id))


async def _take_signing_keys(
    tx: Transaction, origin: ServerName, content: Mapping[str, Any], sharing: set[UserId], effects: _Effects
) -> None:
    user_id = _user_of(origin, content.get("user_id"))
    if user_id is None or user_id not in sharing:
        return
    master = check_signing_key(user_id, "master", content.get("master_key"))
    self_signing = check_signing_key(user_id, "self_signing", content.get("self_signing_key"))
    if master is None and self_signing is None:
        return
    await remote_devices.set_signing_keys(tx, user_id, master, self_signing)
    effects.changed.append(DeviceChange(user_id))


def _groups(waiting: Sequence[ReceivedEdu]) -> list[list[ReceivedEdu]]:
    """In order: a to-device message alone, for inboxes are locked in one order only; what lies between, together."""
    groups: list[list[ReceivedEdu]] = []
    together = False
    for one in waiting:
        is_message = one.edu["edu_type"] == "m.direct_to_device"
        if is_message or not together:
            groups.append([])
        groups[-1].append(one)
        together = not is_message
    return groups


def _user_of(server: ServerName, value: object) -> UserId | None:
    try:
        user_id = parse_user_id(value)
    except InvalidIdentifier:
        return None
    return user_id if server_of(user_id) == server else None


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_TYPE and "\0" not in value

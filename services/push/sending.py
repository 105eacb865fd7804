"""From the queues to the push gateways, at least once.

Spec: Push Gateway API; DESIGN.md section 2, invariant 3.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from matrixcore.identifiers import EventId, RoomId
from services.push import metrics
from services.push.badges import Badge, BadgeCounter
from services.push.evaluating import display_name_of
from services.push.gateway_client import GatewayClient, GatewayFailed
from services.push.mails import MailSettings, compose_mail
from tessera.clock import Clock
from tessera.http.errors import Unavailable
from tessera.ids import IdSource
from tessera.mailing import MailNotSent
from tessera.storage import push_queue
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.push_details import PushDetails, list_details
from tessera.storage.push_queue import DuePusher, Queued
from tessera.storage.shards import RoomShards
from tessera.unread import ReadPoints

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
PARALLEL = 32  # pushers at once
NOTIFICATIONS = 20  # of one pusher at once
WORK_SECONDS = 40.0  # on one pusher; less than the time for which it is claimed
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 3_600.0
FIRST_MAIL_RETRY_SECONDS = 60.0

Details = Mapping[tuple[RoomId, EventId], PushDetails]


@dataclass(slots=True)
class PushSender:
    """Serves pushers that are due.

    Attributes:
        include_content: whether gateways are told what was said.
        mails: how mails are sent; None where the operator sends none.
    """

    accounts: Database
    shards: RoomShards
    clock: Clock
    ids: IdSource
    client: GatewayClient
    badges: BadgeCounter
    include_content: bool
    mails: MailSettings | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Something was queued."""
        self._woken.set()

    async def run(self) -> None:
        """Run for ever; stores that are away are waited for."""
        while True:
            try:
                served = await self.serve_due()
            except DatabaseUnavailable as error:
                log.warning("push pauses", error=str(error))
                served = 0
            if served < PARALLEL:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._woken.wait()
                self._woken.clear()

    async def serve_due(self) -> int:
        """Serve the pushers that are due now, side by side; how many there were."""
        async with self.accounts.transaction() as tx:
            due = await push_queue.take_due(tx, PARALLEL)
        async with asyncio.TaskGroup() as tasks:
            for pusher in due:
                tasks.create_task(self._serve_safely(pusher))
        return len(due)

    async def _serve_safely(self, pusher: DuePusher) -> None:
        """One pusher that cannot be served must not stop the others."""
        try:
            await self._serve(pusher)
        except DatabaseUnavailable as error:
            log.warning("pusher not served", app_id=pusher.key.app_id, error=str(error))
        except Exception:
            log.exception("pusher not served", app_id=pusher.key.app_id)
            with suppress(DatabaseUnavailable):
                await self._retry(pusher, 0.0)

    async def _mail(self, pusher: DuePusher) -> None:
        """One mail about all that is unread of what has gathered; none where the operator has none any more."""
        async with self.accounts.reading() as tx:
            queued = await push_queue.list_queued(tx, pusher.key, push_queue.MAX_QUEUED)
        details = await self._details(queued)
        badge = await self.badges.count(pusher.key.user_id)
        found = (details.get((one.room_id, one.event_id)) for one in queued)
        unread = [one for one in found if one is not None and not one.redacted and not _is_read(one, badge)]
        if unread and self.mails is not None:
            mail = compose_mail(self.mails, pusher.key.pushkey, pusher.key.user_id, unread)
            try:
                # Longer, and somebody else would send it too.
                async with asyncio.timeout(WORK_SECONDS):
                    await self.mails.mailer.send(mail)
            except (MailNotSent, Unavailable, TimeoutError) as error:
                metrics.PUSHES.labels("failed").inc()
                log.info("mail about messages not sent", attempts=pusher.attempts + 1, error=repr(error))
                await self._retry(pusher, FIRST_MAIL_RETRY_SECONDS)
                return
            metrics.PUSHES.labels("sent").inc()
        async with self.accounts.transaction() as tx:
            await push_queue.delete_queued(tx, [one.queue_id for one in queued])
            await push_queue.finish_mail(tx, pusher, mailed=bool(unread))

    async def _serve(self, pusher: DuePusher) -> None:
        if pusher.kind == "email":
            await self._mail(pusher)
            return
        deadline = self.clock.monotonic() + WORK_SECONDS
        async with self.accounts.reading() as tx:
            queued = await push_queue.list_queued(tx, pusher.key, NOTIFICATIONS)
        details = await self._details(queued)
        badge = await self.badges.count(pusher.key.user_id)
        url = orjson.loads(pusher.data)["url"]
        left, sent_any = len(queued), False
        for one in queued:
            if self.clock.monotonic() > deadline:
                break
            found = details.get((one.room_id, one.event_id))
            if found is None or found.redacted or _is_read(found, badge):
                metrics.SKIPPED.inc()
            elif not await self._send(pusher, url, self._notification(pusher, one, found, badge)):
                return
            else:
                sent_any = True
            left -= 1
            async with self.accounts.reading() as tx:
                await push_queue.delete_queued(tx, [one.queue_id])
        # A notification brings the counts along.
        if pusher.badge and not sent_any and not await self._send(pusher, url, _counts_alone(pusher, badge)):
            return
        async with self.accounts.transaction() as tx:
            await push_queue.finish(tx, pusher, has_more=left > 0 or len(queued) == NOTIFICATIONS)

    async def _details(self, queued: Sequence[Queued]) -> Details:
        """The events as they are now, one statement a shard."""
        by_shard: dict[str, list[tuple[RoomId, EventId]]] = {}
        for one in queued:
            shard = self.shards.shard_of(self.shards.partition_of(one.room_id))
            by_shard.setdefault(shard, []).append((one.room_id, one.event_id))
        details: dict[tuple[RoomId, EventId], PushDetails] = {}
        for shard, events in by_shard.items():
            async with self.shards.databases[shard].reading() as tx:
                details.update(await list_details(tx, events))
        return details

    async def _send(self, pusher: DuePusher, url: str, notification: dict[str, Any]) -> bool:
        """Send; False if the pusher is done with for now: its gateway failed, or knows it no longer."""
        try:
            rejected = await self.client.notify(url, notification)
        except GatewayFailed as error:
            metrics.PUSHES.labels("failed").inc()
            log.info("push gateway failed", app_id=pusher.key.app_id, attempts=pusher.attempts + 1, error=str(error))
            await self._retry(pusher, error.retry_after)
            return False
        metrics.PUSHES.labels("sent").inc()
        if pusher.key.pushkey not in rejected:
            return True
        metrics.PUSHES.labels("rejected").inc()
        async with self.accounts.reading() as tx:
            await push_queue.delete_rejected(tx, pusher.key, [pusher.key.pushkey])
        log.info("pusher rejected by its gateway", app_id=pusher.key.app_id)
        return False

    async def _retry(self, pusher: DuePusher, at_least: float) -> None:
        seconds = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(pusher.attempts, 20))
        seconds = max(at_least, seconds * (0.8 + 0.4 * self.ids.fraction()))
        async with self.accounts.transaction() as tx:
            await push_queue.retry_later(tx, pusher, seconds)

    def _notification(self, pusher: DuePusher, one: Queued, found: PushDetails, badge: Badge) -> dict[str, Any]:
        """What the gateway is told of an event."""
        tweaks = orjson.loads(one.tweaks)
        device = _device(pusher)
        is_urgent = found.type == "m.room.encrypted" or bool(tweaks.get("highlight")) or "sound" in tweaks
        notification: dict[str, Any] = {
            "event_id": one.event_id,
            "room_id": one.room_id,
            "counts": _counts(badge),
            "prio": "high" if is_urgent else "low",
            "devices": [device],
        }
        if device["data"].get("format") == "event_id_only":
            return notification
        device["tweaks"] = tweaks
        notification |= {
            "type": found.type,
            "sender": found.sender,
            "user_is_target": found.type == "m.room.member" and found.state_key == pusher.key.user_id,
        }
        if self.include_content:
            notification["content"] = orjson.loads(found.pdu)["content"]
        texts = {
            "sender_display_name": display_name_of(found.sender_member),
            "room_name": _text(found.name, "name") or _text(found.alias, "alias"),
            "room_alias": _text(found.alias, "alias"),
        }
        return notification | {name: text for name, text in texts.items() if text is not None}


def _counts_alone(pusher: DuePusher, badge: Badge) -> dict[str, Any]:
    return {"counts": _counts(badge), "devices": [_device(pusher)]}


def _counts(badge: Badge) -> dict[str, int]:
    return {"unread": badge.unread} if badge.unread else {}


def _device(pusher: DuePusher) -> dict[str, Any]:
    data = orjson.loads(pusher.data)
    data.pop("url", None)
    return {
        "app_id": pusher.key.app_id,
        "pushkey": pusher.key.pushkey,
        "pushkey_ts": pusher.created_ts // 1_000,
        "data": data,
    }


def _is_read(found: PushDetails, badge: Badge) -> bool:
    """Whether the user has read the event on another device."""
    points = badge.points.get(found.room_id, ReadPoints())
    read = points.main
    if found.thread_root is not None:
        read = max(points.unthreaded, points.threads.get(found.thread_root, 0))
    return found.anchor is not None and found.anchor <= read


def _text(pdu: bytes | None, key: str) -> str | None:
    value = None if pdu is None else orjson.loads(pdu)["content"].get(key)
    return value if isinstance(value, str) and value else None

"""Puts the push service together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from services.push.badges import BadgeCounter
from services.push.mails import MailSettings
from services.push.queueing import CONSUMER, PushStep
from services.push.sending import PARALLEL, PushSender
from tessera.consumer_beginnings import begin_at_the_heads
from tessera.consumer_leases import ConsumerLeases
from tessera.mailing import Mailer
from tessera.record_consumer import RecordConsumer
from tessera.service import Service, Surroundings


@asynccontextmanager
async def open_push(around: Surroundings) -> AsyncIterator[Service]:
    """Queueing and sending; several processes share the partitions, and the pushers one by one."""
    settings = around.settings
    if not settings.push.enabled:
        yield Service()
        return
    # The HTTP client takes memory.
    from services.push.gateway_client import GatewayClient

    client = GatewayClient(
        blocked=settings.ip_range_blocklist, allowed=settings.ip_range_allowlist, connections=2 * PARALLEL
    )
    badges = BadgeCounter(around.accounts, around.shards, settings.push.group_unread_count_by_room)
    mails = _mails_of(around)
    sender = PushSender(
        around.accounts, around.shards, around.clock, around.ids, client, badges, settings.push.include_content, mails
    )
    jitter = (settings.push.jitter_delay or 0) / 1_000
    step = PushStep(
        around.accounts,
        around.shards,
        around.clock,
        ServerName(settings.server_name),
        jitter,
        sender.wake,
        None if mails is None else mails.delay_seconds,
    )
    await begin_at_the_heads(around.accounts, around.shards, CONSUMER)
    consumer = RecordConsumer(CONSUMER, step, around.records, around.accounts, around.shards, around.clock)
    checks = {f"consumer {CONSUMER}": consumer.check}
    background = (consumer.run, sender.run)
    try:
        if not around.is_shared:
            consumer.take_on(range(around.shards.partitions))
            yield Service(checks=checks, background=background)
            return
        owner = f"{around.name}/{around.ids.token(9)}"
        leases = ConsumerLeases(around.accounts, around.clock, owner, [consumer], around.shards.partitions)
        yield Service(
            checks={**checks, "leases": leases.check}, background=(*background, leases.run), drain=leases.stop
        )
    finally:
        await client.close()


def _mails_of(around: Surroundings) -> MailSettings | None:
    """How mails about messages are sent; None unless the operator wants them."""
    email = around.settings.email
    if email is None or not email.enable_notifs:
        return None
    mailer = Mailer(email, around.settings.server_name, around.clock, around.ids)
    return MailSettings(mailer, email, around.settings.push.include_content)

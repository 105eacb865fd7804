"""Puts federation_out together: a consumer of room.log that fills the queues, and a sender that empties them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from services.federation_out.device_lists import DeviceListFeed
from services.federation_out.ephemeral import EphemeralEdus
from services.federation_out.presence_reminders import PresenceReminders
from services.federation_out.queue_step import CONSUMER, QueueStep
from services.federation_out.room_servers import RoomServers
from services.federation_out.sending import Sender
from tessera.consumer_leases import ConsumerLeases
from tessera.fanout import Subscriber
from tessera.record_consumer import RecordConsumer
from tessera.service import Background, Service, Surroundings


@asynccontextmanager
async def open_federation_out(around: Surroundings) -> AsyncIterator[Service]:
    """Several processes share the partitions of room.log, and the destinations in buckets; nothing without peers."""
    federation = around.require_federation()
    if not federation.policy.enabled:
        yield Service()
        return
    server_name = ServerName(around.settings.server_name)
    buckets = around.shards.partitions
    servers = RoomServers(around.shards, server_name, around.clock)
    ephemeral = EphemeralEdus(servers, federation.policy, around.clock, server_name, buckets)
    sender = Sender(
        accounts=around.accounts,
        shards=around.shards,
        client=federation.client,
        ephemeral=ephemeral,
        clock=around.clock,
        ids=around.ids,
        server_name=server_name,
    )
    step = QueueStep(server_name, federation.policy, servers, buckets, sender.wake)
    consumer = RecordConsumer(CONSUMER, step, around.records, around.accounts, around.shards, around.clock)
    devices = DeviceListFeed(
        accounts=around.accounts,
        servers=servers,
        policy=federation.policy,
        clock=around.clock,
        server_name=server_name,
        buckets=buckets,
        is_ours=lambda: 0 in sender.partitions,
        wake=sender.wake,
        woken=asyncio.Event(),
    )
    subscription = await around.fanout.subscribe(
        Subscriber(
            on_typing=ephemeral.on_typing,
            on_presence=ephemeral.on_presence if around.settings.presence.enabled else None,
            on_device_wake=devices.on_device_wake,
        )
    )
    checks = {f"consumer {consumer.name}": consumer.check, "sender": sender.check}
    reminders = PresenceReminders(around.accounts, ephemeral, around.clock)
    background: tuple[Background, ...] = (consumer.run, sender.run, devices.run, lambda: ephemeral.run(sender.wake))
    if around.settings.presence.enabled:
        background += (reminders.run,)
    try:
        if not around.is_shared:
            consumer.take_on(range(buckets))
            sender.take_on(range(buckets))
            yield Service(checks=checks, background=background)
            return
        owner = f"{around.name}/{around.ids.token(9)}"
        leases = ConsumerLeases(around.accounts, around.clock, owner, [consumer, sender], buckets)
        yield Service(
            checks={**checks, "leases": leases.check}, background=(*background, leases.run), drain=leases.stop
        )
    finally:
        await subscription.close()

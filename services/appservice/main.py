"""Puts the appservice service together: a consumer of room.log fills the queues, and a sender empties them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from services.appservice.interest import Namespaces
from services.appservice.passing import PassingFeed
from services.appservice.present_rooms import PresentRooms
from services.appservice.queue_step import CONSUMER, AppServiceStep
from services.appservice.sending import PARALLEL, Sender
from tessera.consumer_beginnings import begin_at_the_heads
from tessera.consumer_leases import ConsumerLeases
from tessera.fanout import Subscriber
from tessera.record_consumer import RecordConsumer
from tessera.service import Service, Surroundings
from tessera.storage import appservice_queue


@asynccontextmanager
async def open_appservice(around: Surroundings) -> AsyncIterator[Service]:
    """Several processes share the partitions of room.log, and the services in buckets; nothing without services."""
    services = around.authenticator.appservices.reachable
    if not services:
        async with around.accounts.reading() as tx:
            await appservice_queue.forget_cursors(tx, CONSUMER)
        yield Service()
        return
    # The HTTP client takes memory.
    from tessera.appservice_client import AppServiceClient

    server_name = ServerName(around.settings.server_name)
    client = AppServiceClient(around.clock, connections=2 * PARALLEL)
    sender = Sender(
        services=services,
        accounts=around.accounts,
        shards=around.shards,
        client=client,
        clock=around.clock,
        ids=around.ids,
    )
    namespaces = Namespaces(services, server_name)
    hearing = frozenset(one.service_id for one in services if one.receive_ephemeral)
    feed = PassingFeed(
        around.accounts,
        PresentRooms(around.accounts, around.shards, namespaces, around.clock, server_name),
        around.clock,
        hearing=lambda: hearing.intersection(sender.own),
        wake=sender.wake,
    )
    presence = around.settings.presence.enabled
    listening = Subscriber(on_typing=feed.on_typing, on_presence=feed.on_presence if presence else None)
    step = AppServiceStep(namespaces, around.accounts, around.shards, around.clock, server_name, sender.wake)
    await begin_at_the_heads(around.accounts, around.shards, CONSUMER)
    consumer = RecordConsumer(CONSUMER, step, around.records, around.accounts, around.shards, around.clock)
    checks = {f"consumer {CONSUMER}": consumer.check, "application services": sender.check}
    background = (consumer.run, sender.run, *((feed.run,) if hearing else ()))
    subscription = await around.fanout.subscribe(listening) if hearing else None
    try:
        if not around.is_shared:
            consumer.take_on(range(around.shards.partitions))
            sender.take_on(range(around.shards.partitions))
            yield Service(checks=checks, background=background)
            return
        owner = f"{around.name}/{around.ids.token(9)}"
        leases = ConsumerLeases(around.accounts, around.clock, owner, [consumer, sender], around.shards.partitions)
        yield Service(
            checks={**checks, "leases": leases.check}, background=(*background, leases.run), drain=leases.stop
        )
    finally:
        if subscription is not None:
            await subscription.close()
        await client.close()

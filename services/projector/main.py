"""Puts the projector together: a consumer of room.log for each step; all of them share one reader."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

from matrixcore.identifiers import ServerName
from services.projector import (
    directory,
    guest_access,
    memberships,
    people,
    remote_device_lists,
    search,
    upgraded_rooms,
)
from tessera.bus import SharedRecords
from tessera.consumer_leases import ConsumerLeases
from tessera.rebuilding import Rebuilder
from tessera.record_consumer import RecordConsumer, Step
from tessera.remote_people import PeopleRebuilder
from tessera.search_rebuilding import SearchRebuilder
from tessera.service import Service, Surroundings


@asynccontextmanager
async def open_projector(around: Surroundings) -> AsyncIterator[Service]:
    """All steps, each with cursors of its own; several projectors share the partitions of each step."""
    records = SharedRecords(around.records)
    consumers = [
        RecordConsumer(name, step, records, around.accounts, around.shards, around.clock, rebuild)
        for name, step, rebuild in _steps(around)
    ]
    checks = {f"consumer {consumer.name}": consumer.check for consumer in consumers}
    background = tuple(consumer.run for consumer in consumers)
    if not around.is_shared:
        for consumer in consumers:
            consumer.take_on(range(around.shards.partitions))
        yield Service(checks=checks, background=background)
        return
    owner = f"{around.name}/{around.ids.token(9)}"
    leases = ConsumerLeases(around.accounts, around.clock, owner, consumers, around.shards.partitions)
    yield Service(checks={**checks, "leases": leases.check}, background=(*background, leases.run), drain=leases.stop)


def _steps(around: Surroundings) -> Iterator[tuple[str, Step, Callable[[int], Awaitable[None]]]]:
    server_name = ServerName(around.settings.server_name)
    rebuilder = Rebuilder(around.accounts, around.shards, around.fanout, server_name)

    async def rebuild_memberships(partition: int) -> None:
        async for _ in rebuilder.rebuild_memberships([partition]):
            pass

    async def rebuild_directory(partition: int) -> None:
        async for _ in rebuilder.rebuild_directory([partition]):
            pass

    yield memberships.CONSUMER, memberships.MembershipStep(around.fanout, server_name), rebuild_memberships
    yield directory.CONSUMER, directory.DirectoryStep(around.shards), rebuild_directory
    searches = SearchRebuilder(around.shards)

    async def rebuild_search(partition: int) -> None:
        async for _ in searches.rebuild([partition]):
            pass

    yield search.CONSUMER, search.SearchStep(around.shards), rebuild_search
    people_of_others = PeopleRebuilder(around.accounts, around.shards, server_name)

    async def rebuild_people(partition: int) -> None:
        async for _ in people_of_others.rebuild([partition]):
            pass

    yield people.CONSUMER, people.PeopleStep(around.shards, server_name), rebuild_people
    upgrades = upgraded_rooms.UpgradedRoomsStep(around.shards, around.fanout, server_name)
    yield upgraded_rooms.CONSUMER, upgrades, _leave_as_it_is
    device_lists = remote_device_lists.RemoteDeviceListsStep(around.accounts, around.shards, server_name)
    yield remote_device_lists.CONSUMER, device_lists, _leave_as_it_is
    if around.settings.allow_guest_access:
        guests = guest_access.GuestAccessStep()
        yield guest_access.CONSUMER, guests, lambda partition: guests.look_at_partition(around.accounts, partition)


async def _leave_as_it_is(partition: int) -> None:
    """What users took along is theirs, and what other servers told is not in the rooms: neither is projected anew."""

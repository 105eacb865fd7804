"""Puts the gateway together: the client-server API."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from services.gateway import (
    delayed_event_timers,
    departures,
    guest_removal,
    profile_propagation,
    purge_history,
    redacted_originals,
    room_upgrade_saga,
    stale_devices,
)
from services.gateway.app import build_gateway, gateway_routers, gateway_routes
from services.gateway.member_event_propagation import MemberEventPropagator
from services.gateway.passwords import Passwords
from services.gateway.rooms_elsewhere import RoomsElsewhere
from services.gateway.spaces_elsewhere import SpacesElsewhere
from tessera.federation.backfilling import Backfiller
from tessera.federation.event_fetching import EventFetcher
from tessera.federation.handshakes import Handshaker
from tessera.federation.joining import RoomJoiner
from tessera.room_commands import RoomCommands
from tessera.service import Service, Surroundings
from tessera.storage.outcomes import ShardOutcomes


@asynccontextmanager
async def open_gateway(around: Surroundings) -> AsyncIterator[Service]:
    """The gateway; at the end receipts that wait are sent."""
    commands = RoomCommands(around.commands, around.fanout, ShardOutcomes(around.shards))
    pepper = around.settings.password_config.pepper
    passwords = Passwords(bcrypt_pepper="" if pepper is None else pepper.get_secret_value())
    gateway = build_gateway(
        settings=around.settings,
        clock=around.clock,
        ids=around.ids,
        accounts=around.accounts,
        shards=around.shards,
        fanout=around.fanout,
        commands=commands,
        limits=around.limits,
        last_seen=around.last_seen,
        authenticator=around.authenticator,
        signing_key=around.signing_key,
        passwords=passwords,
    )
    joiner = None
    if around.federation is not None:
        gateway = replace(gateway, peers=around.federation.client)
        # Rooms may have policy servers, which are asked before a member event is sent too.
        gateway = replace(gateway, propagate_profile=MemberEventPropagator(gateway.rooms))
        shaker = Handshaker(
            gateway.server_name, around.signing_key, around.federation.client, around.federation.keyring, around.ids
        )
        joiner = RoomJoiner(gateway.rooms, shaker, f"{around.name}/{around.ids.token()}")
        backfiller = Backfiller(
            gateway.server_name,
            around.shards,
            EventFetcher(around.federation.client, around.federation.keyring),
            commands,
            around.clock,
            around.ids,
        )
        gateway = replace(
            gateway,
            elsewhere=RoomsElsewhere(gateway.rooms, shaker, joiner, around.limits),
            backfiller=backfiller,
            spaces=SpacesElsewhere(around.federation.client, gateway.server_name, around.clock),
        )
    await commands.start()
    try:
        yield Service(
            routes={"client": list(gateway_routes())},
            routers={"client": list(gateway_routers())},
            state={"gateway": gateway},
            background=(
                commands.poll_overdue,
                gateway.receipts.run,
                lambda: profile_propagation.run(around.accounts, gateway.propagate_profile, around.clock),
                lambda: delayed_event_timers.run(gateway.rooms, around.clock),
                lambda: departures.run(gateway.rooms, around.clock),
                lambda: room_upgrade_saga.run(gateway.rooms, around.clock),
                lambda: purge_history.run(gateway.rooms, gateway.server_name, around.clock),
                *_retention(around),
                lambda: stale_devices.run(gateway, around.clock),
                *((joiner.resume,) if joiner is not None else ()),
                *(
                    (lambda: guest_removal.run(gateway.rooms, around.clock),)
                    if around.settings.allow_guest_access
                    else ()
                ),
            ),
        )
        await gateway.receipts.flush()
    finally:
        if gateway.backfiller is not None:
            await gateway.backfiller.close()
        await commands.stop()
        passwords.close()
        await gateway.calls.close()


def _retention(around: Surroundings) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
    """What deletes data that is to be kept for a while only."""
    if (kept_ms := around.settings.redaction_retention_period) is not None:
        yield lambda: redacted_originals.run(around.shards, around.clock, kept_ms)

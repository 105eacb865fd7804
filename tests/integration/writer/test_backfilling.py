"""/messages and timestamp_to_event that bring in history from other servers."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from peer_world import PeerWorld, peer_world
from remote_room import DORA, THERE, RemoteRoom, remote_room
from resident_server import Resident
from test_behind_gaps import check_stored_state, deliver_behind_gap, extremities_below
from writer_world import ALICE, World

from matrixcore.events import Event
from matrixcore.identifiers import EventId
from services.gateway.dependencies import GatewayDeps
from services.gateway.message_pagination import list_messages, parse_page_filter
from services.gateway.room_event_by_timestamp import get_event_by_timestamp as by_timestamp
from tessera.federation.backfilling import Backfiller
from tessera.federation.event_fetching import EventFetcher
from tessera.http.authentication import Requester
from tessera.http.errors import NotFound
from tessera.pagination_token import encode_page_token, point_before
from tessera.records import OrderKey
from tessera.storage.database import Database


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    async with world.writer(), peer_world(world, accounts) as made:
        yield made


@pytest.fixture(params=["1", "11", "12"])
async def room(request: pytest.FixtureRequest, peer: PeerWorld) -> RemoteRoom:
    return await remote_room(peer.world, request.param)


@pytest.fixture
async def gateway(peer: PeerWorld) -> AsyncIterator[GatewayDeps]:
    deps = peer.deps
    fetcher = EventFetcher(deps.federation.client, deps.federation.keyring)
    backfiller = Backfiller(deps.server_name, deps.shards, fetcher, deps.commands, deps.clock, deps.ids)
    parts = SimpleNamespace(accounts=deps.accounts, shards=deps.shards, clock=deps.clock, backfiller=backfiller)
    yield cast("GatewayDeps", parts)
    await backfiller.close()


REQUESTER = Requester(ALICE, "DEV", 1)


async def page(gateway: GatewayDeps, room: RemoteRoom, start: str | None = None, limit: int = 20) -> dict[str, Any]:
    return await list_messages(gateway, REQUESTER, room.room_id, True, start, None, limit, parse_page_filter(None))


async def read_all(gateway: GatewayDeps, room: RemoteRoom, limit: int = 20) -> list[EventId]:
    """All events that a client gets that scrolls back to the beginning."""
    found: list[EventId] = []
    start = None
    for _ in range(50):
        answer = await page(gateway, room, start, limit)
        found += [event["event_id"] for event in answer["chunk"]]
        start = answer.get("end")
        if start is None:
            return found
    raise AssertionError("it never ends")


async def behind_gap(room: RemoteRoom, *, state: bool = False, count: int = 60) -> tuple[list[Event], Event]:
    """Events that were missed, and the one after them that is here."""
    missed = []
    for number in range(count):
        if state and number % 7 == 3:
            missed.append(room.topic(str(number)))
        elif state and number == 20:
            missed.append(room.join(DORA))
        else:
            missed.append(room.message(str(number)))
    event = room.message("seen")
    await deliver_behind_gap(room, event)
    return missed, event


@pytest.mark.parametrize("state", [False, True], ids=["messages", "state"])
async def test_scrolling_back_fetches_what_was_missed(
    peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps, state: bool
) -> None:
    below = [event_id for event_id in room.events if room.events[event_id].depth]
    Resident(peer, room, history=25)
    missed, event = await behind_gap(room, state=state)
    before = await room.current()
    found = await read_all(gateway, room)
    assert found == [event.event_id, *(one.event_id for one in missed[::-1]), *below[::-1]]
    assert await extremities_below(room) == {}
    assert await room.current() == before
    await check_stored_state(room, *missed, event)
    asked = [asked[1].split("/")[4] for asked in peer.peers.asked]
    # The state of a line of messages needs nobody's word.
    assert asked.count("backfill") == 3
    assert ("state_ids" in asked) == state


@pytest.mark.parametrize("limit", [20, 1_000], ids=["small pages", "one page for all"])
async def test_history_that_forked_all_the_time_is_fetched_whole(
    peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps, limit: int
) -> None:
    """Five people who write at the same time: each event stands on all of the last round."""
    below = [event_id for event_id in room.events if room.events[event_id].depth]
    Resident(peer, room, history=23)
    missed: list[Event] = []
    ends = [room.tip]
    for number in range(12):
        wave = [room.message(f"{number}.{who}", prev=ends) for who in range(5)]
        missed, ends = [*missed, *wave], [event.event_id for event in wave]
    event = room.message("seen", prev=ends)
    await deliver_behind_gap(room, event)
    found = await read_all(gateway, room, limit)
    assert sorted(found) == sorted([event.event_id, *(one.event_id for one in missed), *below])
    assert await extremities_below(room) == {}
    await check_stored_state(room, *missed, event)


async def test_the_prev_batch_of_a_limited_timeline_leads_into_the_gap(
    peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps
) -> None:
    Resident(peer, room, history=25)
    missed, event = await behind_gap(room, count=5)
    prev_batch = encode_page_token(point_before(OrderKey((await room.row(event))["anchor"])))
    found = [one["event_id"] for one in (await page(gateway, room, prev_batch))["chunk"]]
    assert found[:5] == [one.event_id for one in missed[::-1]]
    assert len(found) > 5


async def test_history_that_nobody_gives_is_asked_for_once(
    peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps
) -> None:
    missed, event = await behind_gap(room, count=3)
    first = await read_all(gateway, room)
    asked = len(peer.peers.asked)
    assert asked > 0
    assert first[0] == event.event_id
    assert missed[-1].event_id not in first
    assert await read_all(gateway, room) == first
    assert len(peer.peers.asked) == asked


async def test_lies_about_history_are_not_taken_in(peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps) -> None:
    """Unsigned events, and one by somebody who was never in the room."""
    resident = Resident(peer, room)
    missed, event = await behind_gap(room, count=3)
    evil = room.make("m.room.topic", {"topic": "evil"}, state_key="", sender=DORA, prev=[missed[0].event_id])

    def lie(query: Any) -> Any:
        answer = resident.backfill(query)
        unsigned = {**missed[2].fields, "signatures": {}}
        pdus = [unsigned if pdu == dict(missed[2].fields) else pdu for pdu in answer["pdus"]]
        return {**answer, "pdus": [*pdus, dict(evil.fields)]}

    peer.peers.answers[THERE, "backfill/"] = lie
    found = await read_all(gateway, room)
    assert missed[2].event_id not in found
    assert evil.event_id not in found
    assert found[0] == event.event_id


async def test_a_whole_room_costs_one_look(peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps) -> None:
    await page(gateway, room)
    assert gateway.backfiller is not None
    async with gateway.shards.of_room(room.room_id).counting() as count:
        assert not await gateway.backfiller.extend(room.room_id, OrderKey(0), OrderKey(1 << 40))
    assert count.statements == 0
    assert peer.peers.asked == []


async def test_an_event_by_its_time_may_be_in_the_gap(peer: PeerWorld, room: RemoteRoom, gateway: GatewayDeps) -> None:
    Resident(peer, room)
    missed, event = await behind_gap(room, count=40)
    wanted = missed[10]
    answer = await by_timestamp(room.room_id, REQUESTER, gateway, wanted.origin_server_ts, "b")
    assert wanted.event_id in bytes(answer.body).decode()
    assert (await room.row(wanted))["sub"] < 0
    with pytest.raises(NotFound):
        await by_timestamp(room.room_id, REQUESTER, gateway, event.origin_server_ts + 10**9, "f")

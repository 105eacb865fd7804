"""Joining a room of another server, from the template to the room: several servers, crashes, bad answers."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import cast

import orjson
import pytest
from foreign_server import ForeignServer, forever, joiner_of, state_answer
from writer_world import ALICE, BOB, SERVER, World, message

from matrixcore.event_signing import add_signature, sign_event
from matrixcore.events import Event, parse_event
from matrixcore.identifiers import EventId, ServerName, UserId
from tessera.clock import SystemClock
from tessera.federation import join_staging
from tessera.federation.backfilling import Backfiller
from tessera.federation.errors import PeerRefused
from tessera.federation.event_fetching import EventFetcher
from tessera.federation.joining import JoinUnderWay
from tessera.http.errors import MatrixError
from tessera.records import OrderKey
from tessera.storage import joins
from tessera.storage.state_loading import load_current_state
from tests.fixtures.foreign_room import FAR, FAY, ForeignRoom

DEAD = ServerName("dead.example")
GUS = UserId(f"@gus:{FAR}")
HAL = UserId(f"@hal:{FAR}")
JOIN = {"membership": "join", "displayname": "Alice"}


async def state_of(world: World, room: ForeignRoom) -> dict[tuple[str, str], str]:
    async with world.shards.of_room(room.room_id).reading() as tx:
        return dict(await load_current_state(tx, room.room_id))


async def join_states(world: World, room: ForeignRoom) -> list[str]:
    rows = await world.shards.of_room(room.room_id).fetch("SELECT state FROM rooms.joins ORDER BY created_at")
    return [row[0] for row in rows]


@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
async def test_the_next_server_is_asked_when_one_is_away(world: World, version: str) -> None:
    server = ForeignServer(ForeignRoom(version))
    room = server.room
    room.send("m.room.member", {"membership": "join"}, sender=GUS, state_key=GUS)
    async with world.writer():
        event_id = await joiner_of(world, server).join(ALICE, room.room_id, [DEAD, FAR], JOIN)
        assert room.tip is not None
        assert event_id == room.tip.event_id
        assert await state_of(world, room) == {key: event.event_id for key, event in room.state.items()}
        assert room.tip.content["displayname"] == "Alice"
        await world.accepted(room.room_id, message())
    assert await join_states(world, room) == ["done"]
    assert [one[2] for one in server.asked] == ["make_join", "make_join", "send_join"]


class WholeHistory:
    """An `EventFetcher` whose peer gives all of its room at once."""

    def __init__(self, room: ForeignRoom) -> None:
        self._room = room

    async def backfill(self, *_: object) -> list[Event]:
        return list(self._room.events.values())

    async def events(self, *_: object) -> dict[EventId, Event]:
        return {}


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_a_room_that_was_joined_is_read_from_its_beginning(world: World, version: str) -> None:
    """Its create event and first state came as outliers, and get their places now."""
    server = ForeignServer(ForeignRoom(version))
    room = server.room
    for text in ("one", "two"):
        room.send("m.room.message", {"body": text}, sender=FAY)
    async with world.writer():
        await joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN)
        fetcher = cast("EventFetcher", WholeHistory(room))
        own = ServerName(SERVER)
        backfiller = Backfiller(own, world.shards, fetcher, world.commands, SystemClock(), world.ids)
        everything = OrderKey(1 << 40)
        assert await backfiller.find_gap(room.room_id, OrderKey(0), everything) is not None
        assert await backfiller.extend(room.room_id, OrderKey(0), everything)
        assert await backfiller.find_gap(room.room_id, OrderKey(0), everything) is None
        query = "SELECT event_id FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL ORDER BY anchor, sub"
        rows = await world.shards.of_room(room.room_id).fetch(query, room.room_id)
        assert [row[0] for row in rows] == list(room.events)
        assert await state_of(world, room) == {key: event.event_id for key, event in room.state.items()}


async def test_what_all_servers_say_is_told(world: World) -> None:
    server = ForeignServer(ForeignRoom(), refuses=PeerRefused(403, "M_FORBIDDEN", "You are banned"))
    with pytest.raises(MatrixError) as refused:
        await joiner_of(world, server).join(ALICE, server.room.room_id, [FAR, DEAD], JOIN)
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")
    server.is_dead = True
    with pytest.raises(MatrixError) as refused:
        await joiner_of(world, server).join(ALICE, server.room.room_id, [FAR, DEAD], JOIN)
    assert refused.value.status == 502


async def test_a_join_that_was_cut_off_is_gone_on_with(world: World) -> None:
    server = ForeignServer(ForeignRoom())
    room = server.room
    for number in range(30):
        user_id = UserId(f"@user{number}:{FAR}")
        room.send("m.room.member", {"membership": "join"}, sender=user_id, state_key=user_id)
    reached = asyncio.Event()

    def hold(number: int) -> object:
        if number < 5:
            return None
        reached.set()
        return forever()

    server.on_piece = hold
    async with world.writer():
        joining = asyncio.create_task(joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN))
        await asyncio.wait_for(reached.wait(), 10)
        with pytest.raises(JoinUnderWay):
            await joiner_of(world, server, "other").join(BOB, room.room_id, [FAR], {"membership": "join"})
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        assert await join_states(world, room) == ["sending"]
        server.on_piece = lambda _number: None
        database = world.shards.of_room(room.room_id)
        await database.execute("UPDATE rooms.joins SET claimed_until = clock_timestamp() - interval '1 s'")
        async with database.reading() as tx:
            (abandoned,) = await joins.claim_abandoned(tx, "two", 20, 10)
            assert await joins.claim_abandoned(tx, "three", 20, 10) == []
        await joiner_of(world, server, "two").go_on(abandoned)
        assert await join_states(world, room) == ["done"]
        assert len(await state_of(world, room)) == len(room.state) == 35
        await world.accepted(room.room_id, message())
        async with database.reading() as tx:
            await joins.sweep(tx)
        assert await database.fetch("SELECT 1 FROM rooms.join_events") == []


def truncated(room: ForeignRoom, join: Event) -> bytes:
    return state_answer(room, join)[:-40]


def without_create(room: ForeignRoom, join: Event) -> bytes:
    return state_answer(room, join, lacks=["m.room.create"])


def of_another_room(room: ForeignRoom, join: Event) -> bytes:
    return state_answer(room, join, also=[ForeignRoom("10", creator=GUS).state["m.room.join_rules", ""]])


def with_a_key_twice(room: ForeignRoom, join: Event) -> bytes:
    again = room.make("m.room.join_rules", {"join_rule": "invite"}, sender=FAY, state_key="")
    return state_answer(room, join, also=[again])


def no_json(_room: ForeignRoom, _join: Event) -> bytes:
    return b"<html>" * 1_000


@pytest.mark.parametrize("spoil", [truncated, without_create, of_another_room, with_a_key_twice, no_json])
async def test_a_bad_answer_leaves_nothing_behind(world: World, spoil: Callable[[ForeignRoom, Event], bytes]) -> None:
    server = ForeignServer(ForeignRoom())
    room = server.room
    server.answer = lambda join: spoil(room, join)
    async with world.writer():
        with pytest.raises(MatrixError) as refused:
            await joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN)
        assert refused.value.status == 502
        assert await join_states(world, room) == ["failed"]
        assert await state_of(world, room) == {}


async def test_what_is_wrongly_signed_or_not_allowed_is_no_state(world: World) -> None:
    server = ForeignServer(ForeignRoom())
    room = server.room
    topic = room.make("m.room.topic", {"topic": "forged"}, sender=FAY, state_key="")
    forged = add_signature(topic, FAR, next(iter(topic.fields["signatures"][FAR])), "A" * 86)
    name = room.make("m.room.name", {"name": "by nobody"}, sender=GUS, state_key="")  # who is not in the room
    server.answer = lambda join: state_answer(room, join, also=[forged, name])
    async with world.writer():
        await joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN)
        assert await state_of(world, room) == {key: event.event_id for key, event in room.state.items()}
        rejected = await world.shards.of_room(room.room_id).fetch(
            "SELECT event_id FROM rooms.events WHERE rejected IS NOT NULL"
        )
        assert [row[0] for row in rejected] == [name.event_id]


@pytest.mark.parametrize("seed", range(4))
async def test_the_order_of_an_answer_makes_no_difference(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some events are judged as they come, others wait for what they cite; batches are small, and so is memory."""
    monkeypatch.setattr(join_staging, "BATCH", 3)
    monkeypatch.setattr(join_staging, "JUDGED_AT_ONCE", 2)
    monkeypatch.setattr(join_staging, "MAX_CITED", 4)
    server = ForeignServer(ForeignRoom())
    room = server.room
    for number in range(20):
        user_id = UserId(f"@user{number}:{FAR}")
        room.send("m.room.member", {"membership": "join"}, sender=user_id, state_key=user_id)
    told = list(room.state.values())
    name = room.make("m.room.name", {"name": "by nobody"}, sender=GUS, state_key="")  # who is not in the room
    invite = room.make("m.room.member", {"membership": "invite"}, sender=GUS, state_key=HAL)
    room.state[invite.state_tuple] = invite
    accepts = room.make("m.room.member", {"membership": "join"}, sender=HAL, state_key=HAL)  # what was no invite
    del room.state[invite.state_tuple]

    def in_any_order(join: Event) -> bytes:
        state, chain = [*told, name, accepts], [*room.auth_chain([*told, join]), invite]
        random = Random(seed)
        random.shuffle(state)
        random.shuffle(chain)
        arrays = {"state": [dict(e.fields) for e in state], "auth_chain": [dict(e.fields) for e in chain]}
        keys = random.sample(sorted(arrays), 2)
        return orjson.dumps({**{key: arrays[key] for key in keys}, "event": dict(join.fields)})

    server.answer = in_any_order
    async with world.writer():
        await joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN)
        assert await state_of(world, room) == {key: event.event_id for key, event in room.state.items()}
        query = "SELECT event_id FROM rooms.events WHERE rejected IS NOT NULL"
        rejected = {row[0] for row in await world.shards.of_room(room.room_id).fetch(query)}
        assert rejected == {name.event_id, invite.event_id, accepts.event_id}


async def test_a_join_must_be_signed_by_whoever_authorises_it(world: World) -> None:
    room = ForeignRoom("11", join_rule={"join_rule": "restricted", "allow": []})
    server = ForeignServer(room)
    ask = server.get

    async def authorised(*args: object, **more: object) -> dict[str, object]:
        template = await ask(*args, **more)  # type: ignore[arg-type]
        template["event"]["content"]["join_authorised_via_users_server"] = FAY
        template["event"]["auth_events"] = [
            room.state[key].event_id
            for key in (
                ("m.room.create", ""),
                ("m.room.power_levels", ""),
                ("m.room.join_rules", ""),
                ("m.room.member", FAY),
            )
        ]
        return template

    server.get = authorised  # type: ignore[method-assign]
    async with world.writer():
        with pytest.raises(MatrixError) as refused:
            await joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN)
        assert refused.value.status == 502
        del room.state["m.room.member", ALICE]
        server.answer = lambda join: state_answer(room, sign_event(join, room.server, room.key))
        event_id = await joiner_of(world, server).join(ALICE, room.room_id, [FAR], JOIN)
        query = "SELECT pdu FROM rooms.events WHERE room_id = $1 AND event_id = $2"
        pdu = await world.shards.of_room(room.room_id).fetchval(query, room.room_id, event_id)
        assert set(parse_event(pdu, room.rules).fields["signatures"]) == {FAR, SERVER}

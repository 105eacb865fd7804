"""PDUs that peers make to break the writer: each is contained, and those beside it go on. DESIGN section 3."""

import asyncio
from typing import Any

import pytest
from remote_room import CARLA, RemoteRoom, remote_room
from test_batches import Poison
from writer_world import BOB, World, message

from matrixcore.events import Event
from matrixcore.identifiers import UserId
from services.rooms import deciding, receiving
from services.rooms.judging import Judged, Missing
from services.rooms.judging import judge as judge_soundly
from services.rooms.room_past import RoomPast
from services.rooms.room_work import RoomWork
from tessera.commands import ReceivePdus, Unpark
from tessera.storage import dead_letters

HOSTILE: list[tuple[str, dict[str, Any], str | None]] = [
    ("m.room.message", {"m.relates_to": {"rel_type": "m.thread", "event_id": "$\0"}}, None),
    ("m.room.message", {"m.relates_to": {"rel_type": "a\0b", "event_id": "$event"}}, None),
    ("m.room.message", {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$event", "key": "\0"}}, None),
    ("m.room.message", {"m.relates_to": {"m.in_reply_to": {"event_id": "$\0"}}}, None),
    ("m.room.message", {"m.mentions": {"user_ids": ["@a\0b:here.org", "@\0:there.org", 3]}}, None),
    ("m.room.message", {"m.relates_to": {"rel_type": "x" * 60_000, "event_id": "$" + "y" * 300}}, None),
    ("m.room.redaction", {"redacts": "$\0"}, None),
    ("m.room.redaction", {"redacts": ["$a"]}, None),
    ("m.room.member", {"membership": "jo\0in"}, CARLA),
    ("m.room.member", {"membership": "join", "join_authorised_via_users_server": "@a\0:here.org"}, CARLA),
    ("m.room.member", {"membership": "invite", "third_party_invite": {"signed": {"token": "\0"}}}, "@x:here.org"),
    ("m.room.member", {"membership": "invite"}, "@a\0b:here.org"),
    ("m.room.power_levels", {"users": {"@a\0:here.org": 1}}, ""),
    ("m.room.topic", {"topic": "x"}, "\0"),
    ("a\0b", {}, None),
]


@pytest.mark.parametrize("version", ["5", "11"])
@pytest.mark.parametrize("number", range(len(HOSTILE)))
async def test_a_hostile_pdu_is_contained(world: World, number: int, version: str) -> None:
    event_type, content, state_key = HOSTILE[number]
    async with world.writer():
        room = await remote_room(world, version)
        root = room.tip
        before = room.message("before", prev=[root])
        hostile = room.forge(event_type, content, state_key=state_key, prev=[before.event_id])
        after = room.message("after", prev=[before.event_id])
        outcome = await room.deliver(before, hostile, after)
        assert {before.event_id, after.event_id} <= set(outcome.event_ids)
        assert await room.inbox_states() == []
        await world.accepted(room.room_id, message("and here"))
        assert UserId(CARLA) in {key[1] for key in await room.current()}


async def dead_rows(room: RemoteRoom) -> list[str]:
    query = "SELECT event_id FROM rooms.inbox WHERE room_id = $1 AND state = 'dead'"
    return [row[0] for row in await room.world.shards.of_room(room.room_id).fetch(query, room.room_id)]


async def test_a_pdu_that_postgresql_refuses_is_buried_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        events = [room.message(f"{number}", prev=[root]) for number in range(9)]
        poison = room.message("poison", prev=[root])
        on_it = room.message("on it", prev=[poison.event_id])
        monkeypatch.setattr(deciding, "commit", Poison().commit)
        inbox_ids = await room.put(*events[:5], poison, *events[5:], on_it)
        sending = world.submit(world.command(room.room_id, message("of our own")))
        outcome, sent = await asyncio.gather(room.name(inbox_ids), sending)
        assert sent.http_status == 200
        assert set(outcome.event_ids) == {event.event_id for event in events}
        assert await dead_rows(room) == [poison.event_id]
        assert sorted(await room.inbox_states()) == ["dead", "parked"]
        # Whoever sends it again changes nothing; its letter names it, and a replay takes it in with what waits for it.
        assert (await room.deliver(poison)).event_ids == ()
        database = world.shards.of_room(room.room_id)
        async with database.transaction() as tx:
            (letter,) = await dead_letters.list_dead_letters(tx, 10)
            command = await dead_letters.replay(tx, letter.command_id)
        assert command is not None
        assert command.body == ReceivePdus((inbox_ids[5],))
        monkeypatch.undo()
        replayed = await world.submit(command)
        assert replayed.event_ids == (poison.event_id, on_it.event_id)
        assert await room.inbox_states() == []


class Stumbling:
    """Raises at whatever holds the word, as a bug might."""

    async def judge(
        self, work: RoomWork, past: RoomPast, event: Event, *, is_history: bool = False
    ) -> Judged | Missing:
        if b"poison" in event.pdu:
            raise RuntimeError("stumbled")
        return await judge_soundly(work, past, event, is_history=is_history)


async def test_a_pdu_that_makes_the_writer_raise_is_buried_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.writer():
        room = await remote_room(world)
        first = room.message("first")
        events = [room.message(text) for text in ("a", "b", "poison", "c")]
        await room.deliver(*events)  # they wait for the first
        assert await room.inbox_states() == ["parked"] * 4
        monkeypatch.setattr(receiving, "judge", Stumbling().judge)
        # Naming the first alone sets them free, one after the other.
        outcome = await room.deliver(first)
        assert set(outcome.event_ids) == {event.event_id for event in (first, *events[:2])}
        assert await dead_rows(room) == [events[2].event_id]
        assert sorted(await room.inbox_states()) == ["dead", "parked"]
        query = "SELECT missing_event_id FROM rooms.missing_events WHERE room_id = $1"
        missing = await world.shards.of_room(room.room_id).fetch(query, room.room_id)
        assert [row[0] for row in missing] == [events[2].event_id]
        await world.accepted(room.room_id, Unpark(), BOB)  # leaves the dead alone
        assert sorted(await room.inbox_states()) == ["dead", "parked"]
        await world.accepted(room.room_id, message("after"))

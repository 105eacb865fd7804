"""What a state resolution changes reaches the clients. Spec: C-S API §Syncing; Room Versions §State resolution."""

import asyncio
from typing import Any

from sync_world import ALICE, BOB, CAROL, World

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.records import RecordKind, StateBody
from tessera.storage import user_rooms

PLAIN: dict[str, Any] = {}
QUIET = {"presence": {"types": []}}
AFTER = {"use_state_after": "true"}


async def fork(
    world: World,
    room_id: RoomId,
    below: EventId,
    sender: UserId,
    kind: str,
    content: dict[str, Any],
    key: str | None = "",
    *,
    project: bool = True,
) -> Any:
    """An event on what lies below another; its batch, published."""
    dag = await world.writer.dag(room_id)
    prev_event = dag.events[below].prev_events[0]
    batch = await world.writer.fork(dag, prev_event, sender, kind, content, state_key=key)
    await world.publish(batch, project=project)
    return batch


def told(section: dict[str, Any]) -> dict[str, str]:
    """Type -> event ID of the state events that a client applies, in its order."""
    events = section.get("state_after", section.get("state"))["events"]
    if "state_after" not in section:
        events = events + section["timeline"]["events"]
    return {event["type"]: event["event_id"] for event in events if "state_key" in event}


async def test_whoever_loses_a_membership_by_a_resolution_is_out_of_the_room(world: World) -> None:
    room_id = await world.room(ALICE, CAROL)
    joined = await world.member(room_id, BOB, "join")
    bob, alice = world.client(BOB), world.client(ALICE)
    assert room_id in (await bob.sync())["rooms"]["join"]
    await alice.sync()
    parked = asyncio.create_task(bob.sync(timeout=10_000, filter=QUIET))
    # On a branch without Bob the room is closed: his join is undone, and no event says so.
    batch = await fork(world, room_id, joined, ALICE, "m.room.join_rules", {"join_rule": "invite"})
    (changed,) = [record for record in batch.records if record.kind is RecordKind.STATE]
    assert isinstance(changed.body, StateBody)
    assert changed.body.changes == (("m.room.member", BOB, None),)
    assert set((await parked)["rooms"]) == {"leave"}
    async with world.accounts.reading() as tx:
        row = await user_rooms.find_room(tx, BOB, room_id)
    assert row is not None
    assert (row.membership, row.position, row.event_id) == ("leave", changed.position, joined)
    # The others are told how many are left; and nothing later reaches Bob.
    section = (await alice.sync())["rooms"]["join"][room_id]
    assert section["summary"]["m.joined_member_count"] == 2
    await world.say(room_id, ALICE, "without Bob")
    assert "rooms" not in await bob.sync()
    assert "rooms" not in await world.client(BOB, "NEW").sync()


async def test_a_lost_membership_ends_the_room_before_the_user_log_knows(world: World) -> None:
    room_id = await world.room(ALICE)
    joined = await world.member(room_id, BOB, "join")
    bob = world.client(BOB)
    await bob.sync()
    await fork(world, room_id, joined, ALICE, "m.room.join_rules", {"join_rule": "invite"}, project=False)
    await world.say(room_id, ALICE, "not for Bob")
    for client in (bob, world.client(BOB, "NEW")):
        for section in (await client.sync()).get("rooms", {}).get("join", {}).values():
            assert "not for Bob" not in str(section)


async def test_an_invitation_that_a_resolution_takes_away_is_gone(world: World) -> None:
    room_id = await world.room(ALICE, CAROL)
    invite = await world.member(room_id, BOB, "invite", sender=CAROL)
    bob = world.client(BOB)
    assert room_id in (await bob.sync())["rooms"]["invite"]
    await fork(world, room_id, invite, ALICE, "m.room.member", {"membership": "ban"}, CAROL)
    assert set((await bob.sync())["rooms"]) == {"leave"}
    assert "rooms" not in await world.client(BOB, "NEW").sync()


async def test_state_without_an_event_is_told_and_events_that_lost_do_not_mislead(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    first = await world.state(room_id, ALICE, "m.room.topic", {"topic": "first"})
    clients = [(world.client(ALICE, "P"), PLAIN), (world.client(ALICE, "A"), AFTER)]
    for client, query in clients:
        await client.sync(**query)
    # Bob's topic loses its place to that before it as he is demoted on a branch below it, and his name goes.
    second = await world.state(room_id, BOB, "m.room.topic", {"topic": "second"})
    await world.state(room_id, BOB, "m.room.name", {"name": "Bob's"})
    levels = {"users": {ALICE: 100, BOB: 0}, "users_default": 50, "state_default": 20}
    batch = await fork(world, room_id, second, ALICE, "m.room.power_levels", levels)
    assert [record.kind for record in batch.records] == [RecordKind.EVENT, RecordKind.STATE]
    last = await world.say(room_id, ALICE, "after all that")
    for client, query in clients:
        section = (await client.sync(**query))["rooms"]["join"][room_id]
        assert told(section)["m.room.topic"] == first
        assert "m.room.name" not in told(section)
        assert section["summary"]["m.heroes"] == [BOB]  # of a room that has no name any more
        assert told(section)["m.room.power_levels"] == batch.records[0].event.event_id
        assert section["timeline"]["events"][-1]["event_id"] == last
    fresh = [await world.client(ALICE, f"N{query}").sync(**query) for _, query in clients]
    plain, after = (answer["rooms"]["join"][room_id] for answer in fresh)
    assert told(plain)["m.room.topic"] == told(after)["m.room.topic"] == first
    assert "m.room.name" not in told(plain)
    assert "m.room.name" not in told(after)
    # The client that trusts its timeline gets one that does not end in the topic that lost.
    assert second not in {event["event_id"] for event in plain["timeline"]["events"]}
    assert plain["timeline"]["limited"]
    assert second in {event["event_id"] for event in after["timeline"]["events"]}

"""What processes hear or miss: holes, repeats, tokens of others, restarts. Spec: DESIGN.md sections 2 and 5."""

from room_writing import running_writer
from sync_world import ALICE, BOB, World, running_services, running_world
from test_sync import bodies, joined, wait_parked

from matrixcore.identifiers import UserId
from tessera.clock import SystemClock
from tessera.storage import account_data
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards


async def test_a_lost_batch_is_read_before_the_head_moves(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    await world.say(room_id, ALICE, "zero")
    await bob.sync()
    waiting = await wait_parked(world, bob)
    await world.writer.message(room_id, ALICE, "lost")
    await world.say(room_id, ALICE, "heard")
    assert bodies(joined(await waiting, room_id)) == ["lost", "heard"]


async def test_repeated_and_old_batches_change_nothing(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    first = await world.writer.message(room_id, ALICE, "1")
    second = await world.writer.message(room_id, ALICE, "2")
    await world.publish(first, first, second, first, second)
    assert bodies(joined(await bob.sync(), room_id)) == ["1", "2"]
    assert "rooms" not in await bob.sync()


async def test_a_comparison_finds_what_nobody_heard_of(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    await world.writer.message(room_id, ALICE, "unheard")
    await world.services[0].instance.compare()
    assert bodies(joined(await waiting, room_id)) == ["unheard"]


async def test_a_reset_reads_the_heads_again(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    waiting = await wait_parked(world, bob)
    await world.writer.message(room_id, ALICE, "unheard")
    for subscription in world.fanout.subscriptions:
        assert subscription.subscriber.on_reset is not None
        subscription.subscriber.on_reset()
    assert bodies(joined(await waiting, room_id)) == ["unheard"]


async def test_a_reset_is_no_stampede(world: World, accounts: Database) -> None:
    people = [UserId(f"@user{number}:here.org") for number in range(20)]
    room_id = await world.room(*people)
    clients = [world.client(user_id) for user_id in people]
    waiting = []
    for client in clients:
        await client.sync(set_presence="offline")  # or each would be news for the others
        waiting.append(await wait_parked(world, client, set_presence="offline"))
    async with accounts.transaction() as tx:  # unheard
        await account_data.set_content(tx, people[7], "", "org.test", b"{}")
    async with accounts.counting() as count:
        for subscription in world.fanout.subscriptions:
            assert subscription.subscriber.on_reset is not None
            subscription.subscriber.on_reset()
        assert (await waiting[7])["account_data"]["events"] == [{"type": "org.test", "content": {}}]
    assert count.statements <= 12
    assert not any(task.done() for number, task in enumerate(waiting) if number != 7)
    await world.say(room_id, people[0], "hello")
    for number, task in enumerate(waiting):
        if number != 7:
            assert bodies(joined(await task, room_id)) == ["hello"]


async def test_tokens_go_from_one_process_to_another(accounts: Database, shards: RoomShards) -> None:
    async with running_world(accounts, shards, services=2) as world:
        room_id = await world.room(ALICE, BOB)
        one, two = world.client(BOB), world.client(BOB, service=1)
        await one.sync()
        for number in range(6):
            await world.say(room_id, ALICE, str(number))
            two.since = one.since
            assert bodies(joined(await two.sync(), room_id)) == [str(number)]
            one, two = two, one


async def test_a_token_ahead_of_the_process_loses_nothing(accounts: Database, shards: RoomShards) -> None:
    async with running_world(accounts, shards, services=2) as world:
        room_id = await world.room(ALICE, BOB)
        deaf, fresh = world.client(BOB), world.client(BOB, service=1)
        await deaf.sync()
        await world.writer.message(room_id, ALICE, "unheard")
        assert bodies(joined(await fresh.sync(), room_id))[-1] == "unheard"
        deaf.since = fresh.since
        assert "rooms" not in await deaf.sync()
        await world.say(room_id, ALICE, "heard")
        assert bodies(joined(await deaf.sync(timeout=5_000), room_id)) == ["heard"]


async def test_tokens_survive_a_restart(accounts: Database, shards: RoomShards) -> None:
    async with running_writer(shards, SystemClock()) as writer:
        async with running_services(accounts, shards, writer) as world:
            room_id = await world.room(ALICE, BOB)
            bob = world.client(BOB)
            await bob.sync()
            await world.say(room_id, ALICE, "while away")
            token = bob.since
        async with running_services(accounts, shards, writer) as world:
            bob = world.client(BOB)
            bob.since = token
            section = joined(await bob.sync(), room_id)
            assert bodies(section) == ["while away"]
            assert section["timeline"]["limited"] is False


async def test_another_incarnation_is_limited(world: World, accounts: Database) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = world.client(BOB)
    await bob.sync()
    await accounts.execute("UPDATE rooms.partitions SET incarnation = 2, head = head + 100")
    await world.services[0].instance.compare()
    section = joined(await bob.sync(timeout=5_000), room_id)
    assert section["timeline"]["limited"] is True
    assert {event["type"] for event in section["timeline"]["events"]} >= {"m.room.create", "m.room.member"}


async def test_an_initial_sync_of_many_rooms_takes_few_statements(world: World, accounts: Database) -> None:
    for number in range(20):
        room_id = await world.room(ALICE, BOB, name=None if number % 2 else f"room {number}")
        await world.say(room_id, ALICE, "hello")
    bob = world.client(BOB)
    instance = world.services[0].instance
    await instance.users.get(BOB)
    await bob.sync()  # the presence is written
    bob.since = None
    async with accounts.counting_here() as count:
        answer = await bob.sync(filter={"room": {"state": {"lazy_load_members": True}}})
    assert len(answer["rooms"]["join"]) == 20
    assert 0 < count.statements <= 12

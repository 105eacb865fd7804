"""The cost of what is loaded does not grow with the rooms at hand. DESIGN section 2, invariant 10."""

import asyncio

from writer_world import BOB, World, message

from tessera.commands import Append, NewEvent, OutcomeStatus


async def test_many_cold_rooms_at_once_are_few_statements(world: World) -> None:
    async with world.writer():
        rooms = [await world.new_room() for _ in range(300)]
    database = world.shards.of_room(rooms[0])
    async with world.writer():  # knows none of them yet
        async with database.counting() as count:
            sends = [world.command(room_id, message("x")) for room_id in rooms]
            results = await asyncio.gather(*map(world.submit, sends))
        assert {result.status for result in results} == {OutcomeStatus.ACCEPTED}
        assert count.transactions == 0
        assert count.statements <= 12  # a load and a commit for each of a few batches; a look at the leases
        async with database.counting() as count:
            again = [world.command(room_id, message("y")) for room_id in rooms]
            await asyncio.gather(*map(world.submit, again))
        assert count.statements <= 6


async def test_a_join_does_not_load_the_members(world: World) -> None:
    async with world.writer():
        room_id = await world.new_room()
        database = world.shards.of_room(room_id)
        async with database.transaction() as tx:  # 20,000 members of another server, as if they had joined
            await tx.execute(
                """
                WITH members AS (
                    SELECT '@user' || n || ':there.org' AS user_id, '$member' || n AS event_id
                    FROM generate_series(1, 20000) n
                ), events AS (
                    INSERT INTO rooms.events (room_id, event_id, type, state_key, sender, membership, depth,
                                              origin_server_ts, received_ms, pdu)
                    SELECT $1, event_id, 'm.room.member', user_id, user_id, 'join', 1, 1, 1, '{}' FROM members
                ), servers AS (
                    INSERT INTO rooms.room_servers VALUES ($1, 'there.org', 20000)
                )
                INSERT INTO rooms.current_state SELECT $1, 'm.room.member', user_id, event_id, 1, 0, 'join' FROM members
                """,
                room_id,
            )
            await tx.execute("UPDATE rooms.rooms SET joined_count = joined_count + 20000 WHERE room_id = $1", room_id)
    async with world.writer() as writer:
        joined = await world.accepted(room_id, Append(NewEvent("m.room.member", BOB, {"membership": "join"})), BOB)
        await world.accepted(room_id, message("hello"), BOB)
        assert joined.memberships[0].membership == "join"
        assert sum(one._rooms.size for one in writer.writers) < 100_000
        (records,) = (await world.stored_records()).values()
        assert records[-1].event.joined_count == 20_002
        assert records[-1].event.servers == ("there.org",)

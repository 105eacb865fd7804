"""Which servers a record names, and which events this server passes on. Spec: S-S API §PDUs; DESIGN.md section 6."""

from remote_room import CARLA, DORA, THERE, remote_room
from writer_world import ALICE, World, message

from matrixcore.identifiers import UserId
from tessera.commands import Append, AppendPdu, NewEvent
from tessera.records import EventBody, encode_record

EVE = UserId("@eve:third.org")


async def newest(world: World) -> EventBody:
    """The last event that was stored; what was published is the same, byte for byte."""
    stored, published = await world.stored_records(), world.published_records()
    for partition, records in stored.items():
        assert [encode_record(r) for r in records] == [encode_record(r) for r in published[partition]]
    return max((r for records in stored.values() for r in records), key=lambda r: r.position).event


def member(user_id: UserId, membership: str) -> Append:
    return Append(NewEvent("m.room.member", user_id, {"membership": membership}))


async def test_only_events_accepted_on_behalf_of_a_peer_are_passed_on(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        assert not (await newest(world)).forwarded
        join = room.join(DORA)
        await world.accepted(room.room_id, AppendPdu(join.pdu), DORA)
        told = await newest(world)
        assert (told.event_id, told.forwarded, told.servers) == (join.event_id, True, (THERE,))
        await world.accepted(room.room_id, message())
        assert not (await newest(world)).forwarded


async def test_the_last_member_of_a_server_hears_of_the_ban(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        await world.accepted(room.room_id, member(CARLA, "ban"), ALICE)
        assert (await newest(world)).servers == (THERE,)
        await world.accepted(room.room_id, message())
        assert (await newest(world)).servers == ()


async def test_whose_invite_is_taken_back_hears_of_it(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        await world.accepted(room.room_id, member(EVE, "invite"), ALICE)
        assert (await newest(world)).servers == (THERE,)  # the invitee's server has signed it before
        await world.accepted(room.room_id, member(EVE, "leave"), ALICE)
        assert (await newest(world)).servers == (THERE, "third.org")
        await world.accepted(room.room_id, member(EVE, "ban"), ALICE)
        assert (await newest(world)).servers == (THERE,)

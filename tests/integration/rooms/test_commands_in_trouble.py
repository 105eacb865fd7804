"""Sends that meet an absent writer, and two gateways at once. DESIGN section 2, invariants 3 to 5."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from seeded_rooms import ALICE, BOB, SERVER, SeededRoom

from matrixcore.identifiers import RoomId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.member_event_propagation import MemberEventPropagator
from services.gateway.new_room import parse_new_room
from services.gateway.room_changes import RoomChanges, RoomUnavailable, Session
from services.gateway.room_creation import RoomMaker
from services.gateway.room_send import send_event
from tessera.commands import NewEvent
from tessera.room_commands import RoomCommands
from tessera.storage import profiles, users
from tessera.storage.database import Database
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.profiles import Profile
from tessera.storage.room_reads.members import list_member_contents

TEXT = {"msgtype": "m.text", "body": "x"}
HERE = Session(ALICE, "A")


async def test_without_a_writer_a_send_is_503_and_will_not_happen(
    gateway: SimpleNamespace, room: SeededRoom, accounts: Database
) -> None:
    await gateway.commands.start()
    changes: RoomChanges = replace(gateway.rooms, timeout_seconds=0.05)
    with pytest.raises(RoomUnavailable) as refused:
        await send_event(changes, HERE, room.room_id, "m.room.message", TEXT, "1")
    assert refused.value.status == 503
    assert refused.value.body["errcode"] == "M_UNKNOWN"
    assert refused.value.body["retry_after_ms"] == 1_000
    assert await accounts.fetchval("SELECT status FROM rooms.outcomes") == 3  # withdrawn
    await gateway.commands.stop()


async def make_room(changes: RoomChanges, signer: RoomMaker, **body: Any) -> RoomId:
    maker = RoomMaker(changes, SERVER, signer.signing_key)
    return await maker.create(HERE, parse_new_room(body, ALICE, ROOM_VERSIONS["12"], None))


@pytest.mark.usefixtures("writer")
async def test_the_same_request_at_two_gateways_is_one_event(gateway: SimpleNamespace) -> None:
    other = RoomCommands(gateway.bus, gateway.fanout, ShardOutcomes(gateway.shards))
    await other.start()
    room_id = await make_room(gateway.rooms, gateway.room_maker)
    there: RoomChanges = replace(gateway.rooms, commands=other)
    sent = await asyncio.gather(
        *(send_event(changes, HERE, room_id, "m.room.message", TEXT, "1") for changes in (gateway.rooms, there))
    )
    assert sent[0] == sent[1]
    again = await send_event(there, HERE, room_id, "m.room.message", TEXT, "1")
    assert again == sent[0]
    elsewhere = await send_event(there, Session(ALICE, "B"), room_id, "m.room.message", TEXT, "1")
    assert elsewhere != again  # another device's transaction IDs are its own
    await other.stop()


@pytest.mark.usefixtures("writer")
async def test_a_changed_profile_reaches_all_joined_rooms_once(gateway: SimpleNamespace, accounts: Database) -> None:
    async with accounts.transaction() as tx:
        await users.add_user(tx, ALICE, password_hash=None, displayname="Alice", now_ms=1)
    rooms = [await make_room(gateway.rooms, gateway.room_maker, invite=[BOB]) for _ in range(3)]
    left = await make_room(gateway.rooms, gateway.room_maker)
    leave = NewEvent("m.room.member", ALICE, {"membership": "leave"})
    await gateway.rooms.append(left, HERE, leave)
    async with accounts.transaction() as tx:
        await profiles.set_profile(tx, ALICE, Profile("Alicia", "mxc://here.org/a", None))
    propagate = MemberEventPropagator(gateway.rooms)
    await propagate(ALICE)
    count = await accounts.fetchval("SELECT count(*) FROM rooms.events")
    await propagate(ALICE)
    assert await accounts.fetchval("SELECT count(*) FROM rooms.events") == count
    async with accounts.reading() as tx:
        contents = await list_member_contents(tx, [*rooms, left], ALICE)
    assert {room_id for room_id, _ in contents} == set(rooms)
    assert all(b'"displayname":"Alicia"' in pdu and b"mxc://here.org/a" in pdu for _, pdu in contents)

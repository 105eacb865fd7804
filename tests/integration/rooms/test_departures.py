"""Closed accounts leave their rooms, whoever is away meanwhile and however often it is tried."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from seeded_rooms import ALICE, SeededRoom

from matrixcore.identifiers import EventId, RoomId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.departures import depart, depart_all
from services.gateway.new_room import parse_new_room
from services.gateway.room_changes import RoomChanges, RoomUnavailable, Session
from services.gateway.room_creation import RoomMaker
from services.gateway.room_membership import join_room
from tessera.room_commands import RoomCommands
from tessera.storage import departures, user_rooms, users
from tessera.storage.database import Database
from tessera.storage.departures import Departure
from tessera.storage.outcomes import ShardOutcomes
from tessera.storage.user_rooms import MembershipChange

DEPARTURE = Departure(ALICE, b"0123456789abcdef")


async def make_room(gateway: SimpleNamespace) -> RoomId:
    maker: RoomMaker = gateway.room_maker
    return await maker.create(Session(ALICE, "A"), parse_new_room({}, ALICE, ROOM_VERSIONS["11"], None))


async def close_account(accounts: Database) -> None:
    async with accounts.transaction() as tx:
        await users.add_user(tx, ALICE, password_hash=None, displayname=None, now_ms=1)
        await departures.add_departure(tx, ALICE, DEPARTURE.seed)


async def leaves(accounts: Database) -> int:
    counted: int = await accounts.fetchval(
        "SELECT count(*) FROM rooms.events WHERE type = 'm.room.member' AND membership = 'leave'"
    )
    return counted


@pytest.mark.usefixtures("writer")
async def test_two_gateways_at_once_leave_once(gateway: SimpleNamespace, accounts: Database) -> None:
    await close_account(accounts)
    for _ in range(3):
        await make_room(gateway)
    other = RoomCommands(gateway.bus, gateway.fanout, ShardOutcomes(gateway.shards))
    await other.start()
    there: RoomChanges = replace(gateway.rooms, commands=other)
    await asyncio.gather(*(depart(changes, DEPARTURE) for changes in (gateway.rooms, there)))
    await depart_all(there)
    assert await leaves(accounts) == 3
    await other.stop()


@pytest.mark.usefixtures("writer")
async def test_a_join_that_was_on_its_way_is_ended_too(gateway: SimpleNamespace, accounts: Database) -> None:
    await close_account(accounts)
    maker: RoomMaker = gateway.room_maker
    public = parse_new_room({"preset": "public_chat"}, ALICE, ROOM_VERSIONS["11"], None)
    room_id = await maker.create(Session(ALICE, "A"), public)
    await depart(gateway.rooms, DEPARTURE)
    await join_room(gateway.rooms, Session(ALICE, "A"), room_id, {})
    await depart_all(gateway.rooms)
    assert await leaves(accounts) == 2
    assert await accounts.fetchval("SELECT count(*) FROM accounts.departures") == 1
    await accounts.execute("UPDATE accounts.departures SET owed_since = now() - interval '61 seconds'")
    await depart_all(gateway.rooms)
    assert await accounts.fetchval("SELECT count(*) FROM accounts.departures") == 0


async def test_without_a_writer_the_debt_stays(gateway: SimpleNamespace, accounts: Database, room: SeededRoom) -> None:
    await close_account(accounts)
    await accounts.execute("UPDATE accounts.departures SET owed_since = now() - interval '61 seconds'")
    joined = MembershipChange(ALICE, room.room_id, "join", EventId("$join"), ALICE, 0, 1, 2)
    async with accounts.transaction() as tx:
        await user_rooms.apply_changes(tx, [joined])
    await gateway.commands.start()
    changes: RoomChanges = replace(gateway.rooms, timeout_seconds=0.05)
    with pytest.raises(RoomUnavailable):
        await depart(changes, DEPARTURE)
    await depart_all(changes)  # says so in the log, and goes on
    assert await accounts.fetchval("SELECT count(*) FROM accounts.departures") == 1
    await gateway.commands.stop()

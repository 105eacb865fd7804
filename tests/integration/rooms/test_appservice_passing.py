"""Typing and presence for application services. Spec: Application Service API §Pushing ephemeral data."""

from typing import Any

import pytest
from seeded_rooms import ALICE, BEGINNING_MS, BOB, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, UserId
from services.appservice.composing import ephemeral_events
from services.appservice.interest import Namespaces
from services.appservice.passing import PassingFeed
from services.appservice.present_rooms import PresentRooms
from tessera.appservice_client import AppServiceClient
from tessera.appservices import AppServices, parse_registration
from tessera.bridged_names import BridgedNames
from tessera.clock import FakeClock
from tessera.records import Receipt
from tessera.storage import appservice_queue
from tessera.storage.appservice_queue import NewTransaction
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.wakes import PresenceChange, TypingChange

GHOST = UserId(f"@_irc_zoe:{SERVER}")
STRANGER = UserId("@stranger:there.org")


class World:
    """A feed for one bridge, moved by hand."""

    def __init__(self, accounts: Database, shards: RoomShards) -> None:
        data = {
            "id": "irc",
            "url": "http://127.0.0.1:9",
            "as_token": "as_token_of_irc",
            "hs_token": "hs_token_of_irc",
            "sender_localpart": "ircbot",
            "receive_ephemeral": True,
            "namespaces": {"users": [{"exclusive": True, "regex": "@_irc_.*"}]},
        }
        self.accounts = accounts
        self.clock = FakeClock(BEGINNING_MS)
        self.services = [parse_registration(data, SERVER)]
        namespaces = Namespaces(self.services, SERVER)
        rooms = PresentRooms(accounts, shards, namespaces, self.clock, SERVER)
        self.own = frozenset({"irc"})
        self.wakes = 0
        self.feed = PassingFeed(accounts, rooms, self.clock, lambda: self.own, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    async def told(self) -> list[dict[str, Any]]:
        """What is queued after what was heard."""
        await self.feed.queue()
        async with self.accounts.reading() as tx:
            return ephemeral_events(await appservice_queue.list_ephemeral(tx, "irc"))


@pytest.fixture
def world(accounts: Database, shards: RoomShards, room: SeededRoom) -> World:
    return World(accounts, shards)


async def test_who_types_in_a_room_with_a_ghost_is_told_as_a_whole(world: World, room: SeededRoom) -> None:
    world.feed.on_typing(TypingChange(ROOM, ALICE, 30_000))
    assert await world.told() == []
    await room.member(GHOST, "join")
    await world.clock.advance(6)
    world.feed.on_typing(TypingChange(ROOM, BOB, 30_000))
    assert await world.told() == [{"type": "m.typing", "room_id": ROOM, "content": {"user_ids": [ALICE, BOB]}}]
    world.feed.on_typing(TypingChange(ROOM, ALICE, 0))
    assert await world.told() == [{"type": "m.typing", "room_id": ROOM, "content": {"user_ids": [BOB]}}]


async def test_presence_of_people_in_the_same_rooms_and_of_its_own(world: World, room: SeededRoom) -> None:
    await room.member(GHOST, "join")
    await room.member(STRANGER, "join")
    await world.clock.advance(1)
    now = world.clock.now_ms()
    world.feed.on_presence(PresenceChange(STRANGER, "online", "hello", now - 5, True))
    world.feed.on_presence(PresenceChange(BOB, "online", None, now, True))
    world.feed.on_presence(PresenceChange(UserId(f"@_irc_nowhere:{SERVER}"), "unavailable", None, now, False))
    told = {event["sender"]: event for event in await world.told()}
    assert told.keys() == {STRANGER, f"@_irc_nowhere:{SERVER}"}
    assert told[STRANGER] == {
        "type": "m.presence",
        "sender": STRANGER,
        "content": {"presence": "online", "last_active_ago": 5, "currently_active": True, "status_msg": "hello"},
    }
    world.feed.on_presence(PresenceChange(STRANGER, "offline", None, now, False))
    told = {event["sender"]: event for event in await world.told()}
    assert told[STRANGER]["content"]["presence"] == "offline", "the newest alone is kept"


async def test_a_service_that_fails_or_is_another_process_s_gets_none(world: World, room: SeededRoom) -> None:
    await room.member(GHOST, "join")
    async with world.accounts.transaction() as tx:
        await appservice_queue.persist(tx, NewTransaction("irc", "t", b"{}", (), ()))
        await appservice_queue.fail(tx, "irc", "t", "away", 5)
    world.feed.on_typing(TypingChange(ROOM, ALICE, 30_000))
    assert await world.told() == []
    async with world.accounts.transaction() as tx:
        await appservice_queue.settle(tx, "irc", "t")
    world.own = frozenset()
    world.feed.on_typing(TypingChange(ROOM, BOB, 30_000))
    assert await world.told() == []


async def test_private_receipts_go_to_the_service_of_their_user_alone(world: World, accounts: Database) -> None:
    registrations = AppServices(world.services)
    client = AppServiceClient(world.clock, connections=1)
    names = BridgedNames(registrations, client, accounts, world.clock, SERVER)
    given = [(ROOM, Receipt(user_id, "m.read.private", "", EventId("$e"), 7)) for user_id in (GHOST, ALICE)]
    async with accounts.transaction() as tx:
        await appservice_queue.add_ephemeral(tx, names.private_receipts(given))
    content = {"$e": {"m.read.private": {GHOST: {"ts": 7}}}}
    assert await world.told() == [{"type": "m.receipt", "room_id": ROOM, "content": content}]


async def test_a_crowd_s_presence_is_taken_a_part_at_a_time(world: World, room: SeededRoom) -> None:
    await room.member(GHOST, "join")
    for number in range(120):
        user_id = UserId(f"@_irc_{number}:{SERVER}")
        world.feed.on_presence(PresenceChange(user_id, "online", None, BEGINNING_MS, True))
    queued = []
    for _ in range(3):
        await world.feed.queue()
        queued.append(await world.accounts.fetchval("SELECT count(*) FROM accounts.appservice_ephemeral"))
    assert queued == [50, 100, 120]

"""From a room's events to an application service, over HTTP. Spec: Application Service API §Pushing events."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson
import pytest
from aiohttp import web
from seeded_rooms import ALICE, BEGINNING_MS, BOB, PARTITIONS, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, RoomAlias, RoomId, UserId
from services.appservice.interest import Namespaces
from services.appservice.queue_step import CONSUMER, AppServiceStep
from services.appservice.sending import Sender
from tessera.appservice_client import LEGACY_SECONDS, AppServiceClient
from tessera.appservices import Registration, parse_registration
from tessera.bus import LocalRecordBus
from tessera.clock import FakeClock
from tessera.ids import IdSource
from tessera.record_consumer import RecordConsumer
from tessera.records import (
    LogRecord,
    Receipt,
    ReceiptsBody,
    RecordKind,
    StateBody,
    StateMembership,
)
from tessera.storage import aliases, appservice_queue, appservice_reads, consumer_cursors
from tessera.storage.appservice_queue import DueService
from tessera.storage.consumer_cursors import Cursor
from tessera.storage.database import Database, DatabaseUnavailable, Transaction
from tessera.storage.records import list_records
from tessera.storage.shards import RoomShards

GHOST = UserId(f"@_irc_zoe:{SERVER}")
BOT = UserId(f"@ircbot:{SERVER}")


@dataclass
class Bridge:
    """An application service: the transactions it took, and what it answers."""

    url: str = ""
    taken: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tried: list[tuple[str, str]] = field(default_factory=list)
    authorization: str = ""
    status: int = 200
    lost: int = 0  # answers that do not arrive though the transaction did
    headers: dict[str, str] = field(default_factory=dict)
    legacy: bool = False
    at_once: int = 0
    most_at_once: int = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            return await self._answer(request)
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request) -> web.Response:
        txn_id = request.match_info["txn"]
        self.tried.append((txn_id, request.path))
        self.authorization = request.headers.get("Authorization", "")
        if self.legacy and request.path.startswith("/_matrix"):
            return web.json_response({"errcode": "M_UNRECOGNIZED"}, status=404)
        body = await request.json()
        if self.status == 200:
            self.taken.append((txn_id, body))
        if self.lost:
            self.lost -= 1
            assert request.transport is not None
            request.transport.close()
        return web.json_response({}, status=self.status, headers=self.headers)

    def events(self) -> list[dict[str, Any]]:
        seen: dict[str, dict[str, Any]] = dict(self.taken)
        return [event for body in seen.values() for event in body["events"]]

    def event_ids(self) -> list[str]:
        return [event["event_id"] for event in self.events()]


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    made = Bridge()
    app = web.Application(client_max_size=8 << 20)
    app.router.add_put("/_matrix/app/v1/transactions/{txn}", made.handle)
    app.router.add_put("/transactions/{txn}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def registration(service_id: str, url: str | None, **more: Any) -> Registration:
    """The IRC bridge unless something else is said."""
    data = {
        "id": service_id,
        "url": url,
        "as_token": f"as_token of {service_id}",
        "hs_token": f"hs_token of {service_id}",
        "sender_localpart": f"{service_id}bot",
        "namespaces": {"users": [{"exclusive": True, "regex": f"@_{service_id}_.*"}]},
    }
    return parse_registration({**data, **more}, SERVER)


@dataclass
class World:
    """The appservice service, moved by hand."""

    accounts: Database
    shards: RoomShards
    clock: FakeClock
    client: AppServiceClient
    services: list[Registration]
    ids: IdSource = field(default_factory=lambda: IdSource.seeded(1))
    consumer: RecordConsumer = field(init=False)
    sender: Sender = field(init=False)
    step: AppServiceStep = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process with the same database."""
        self.sender = Sender(
            services=self.services,
            accounts=self.accounts,
            shards=self.shards,
            client=self.client,
            clock=self.clock,
            ids=self.ids,
        )
        self.sender.take_on(range(PARTITIONS))
        namespaces = Namespaces(self.services, SERVER)
        self.step = AppServiceStep(namespaces, self.accounts, self.shards, self.clock, SERVER, self.sender.wake)
        self.consumer = RecordConsumer(CONSUMER, self.step, LocalRecordBus(), self.accounts, self.shards, self.clock)

    async def tell(self) -> None:
        """Queue what is new, and send once to everybody who is due."""
        await self.consumer.catch_up()
        async with asyncio.TaskGroup() as tasks:
            await self.sender.start_due(tasks)

    async def queued(self, service_id: str = "irc") -> int:
        async with self.accounts.reading() as tx:
            (status,) = await appservice_queue.list_status(tx, [service_id])
        return status.queued

    async def make_due(self) -> None:
        await self.accounts.execute("UPDATE accounts.appservices SET due_at = now() - interval '1 second'")


@pytest.fixture
async def world(accounts: Database, shards: RoomShards, room: SeededRoom, bridge: Bridge) -> AsyncIterator[World]:
    clock = FakeClock(BEGINNING_MS + 60_000)
    client = AppServiceClient(clock, connections=4)
    yield World(accounts, shards, clock, client, [registration("irc", bridge.url, receive_ephemeral=True)])
    await client.close()


async def test_a_room_with_a_ghost_is_told_in_order_from_its_join_to_its_leave(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    await room.message(ALICE, "before")
    joined = await room.member(GHOST, "join", displayname="Zoe")
    said = await room.message(ALICE, "hello")
    own = await room.message(GHOST, "hi")
    named = await room.add("m.room.name", ALICE, {"name": "Kitchen"}, state_key="")
    renamed = await room.add("m.room.name", ALICE, {"name": "Hall"}, state_key="")
    left = await room.member(GHOST, "leave")
    await room.message(ALICE, "after")
    invited = await room.member(GHOST, "invite", sender=ALICE)
    await room.message(ALICE, "it has not come yet")
    await world.tell()
    told = bridge.events()
    expected = [joined, said, own, named, renamed, left, invited]
    assert [event["event_id"] for event in told] == [one.event_id for one in expected]
    assert told[1] == {
        "event_id": said.event_id,
        "room_id": ROOM,
        "type": "m.room.message",
        "sender": ALICE,
        "origin_server_ts": said.origin_server_ts,
        "content": {"msgtype": "m.text", "body": "hello"},
        "unsigned": {"age": world.clock.now_ms() - said.origin_server_ts},
    }
    assert told[4]["state_key"] == ""
    assert told[4]["unsigned"]["prev_content"] == {"name": "Kitchen"}
    assert bridge.authorization == "Bearer hs_token of irc"
    assert await world.queued() == 0
    await world.tell()
    assert len(bridge.taken) == 1


async def test_history_decides_who_was_there_when_the_service_was_behind(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    """All of it lies in the room already when the first record is taken, in batches that begin anywhere."""
    await room.member(BOB, "join")
    expected = []
    for turn in range(3):
        expected.append(await room.member(BOT, "join"))
        expected.append(await room.message(BOB, f"{turn}"))
        expected.append(await room.member(BOT, "leave"))
        await room.message(BOB, "alone")
    async with world.accounts.transaction() as tx:
        # Somebody else took the records up to the second join.
        await consumer_cursors.move_cursor(tx, CONSUMER, world.shards.partition_of(ROOM), Cursor(1, room.position - 7))
    await world.tell()
    assert bridge.event_ids() == [one.event_id for one in expected[4:]]


async def test_a_transaction_is_repeated_with_its_id_and_bytes_until_it_is_taken(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    first = await room.member(GHOST, "join")
    bridge.status = 500
    await world.tell()
    second = await room.message(ALICE, "meanwhile")
    await world.tell()
    assert len(bridge.tried) == 1, "it is left alone for a while"
    async with world.accounts.reading() as tx:
        (status,) = await appservice_queue.list_status(tx, ["irc"])
    assert (status.failures, status.queued, status.last_error) == (1, 2, "status 500")
    world.restart()
    await world.make_due()
    bridge.status, bridge.lost = 200, 1
    await world.tell()
    world.restart()
    await world.make_due()
    await world.tell()
    tried = [txn_id for txn_id, _ in bridge.tried]
    assert len(set(tried[:-1])) == 1, "also when the answer was lost, and by another process"
    assert len(tried) >= 4
    assert tried[-1] not in tried[:-1]
    bodies = [body for txn_id, body in bridge.taken if txn_id == tried[0]]
    assert bodies[0] == bodies[1]
    assert bridge.event_ids() == [first.event_id, second.event_id]
    assert await world.queued() == 0


async def test_the_pauses_grow_and_a_service_may_ask_for_longer_ones(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    await room.member(GHOST, "join")
    bridge.status = 503
    pauses = []
    for _ in range(4):
        await world.tell()
        pauses.append(await world.accounts.fetchval("SELECT retry_seconds FROM accounts.appservices"))
        await world.make_due()
    assert 0.7 < pauses[0] < 1.3
    assert all(later > 1.2 * earlier for earlier, later in pairwise(pauses))
    bridge.headers = {"Retry-After": "120"}
    await world.tell()
    assert await world.accounts.fetchval("SELECT retry_seconds FROM accounts.appservices") == 120


async def test_many_events_go_in_transactions_of_a_hundred_one_at_a_time(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    expected = [await room.member(GHOST, "join")]
    for number in range(230):
        expected.append(await room.message(ALICE, str(number)))
    await world.tell()
    assert [len(body["events"]) for _, body in bridge.taken] == [100, 100, 31]
    assert bridge.event_ids() == [one.event_id for one in expected]
    assert bridge.most_at_once == 1


async def test_a_dead_service_holds_up_nobody(world: World, room: SeededRoom, bridge: Bridge) -> None:
    world.services[:] = [registration("dead", "http://127.0.0.1:9"), registration("irc", bridge.url)]
    world.restart()
    await room.member(UserId(f"@_dead_x:{SERVER}"), "join")
    joined = await room.member(GHOST, "join")
    await world.tell()
    said = await room.message(ALICE, "hello")
    await world.tell()
    assert bridge.event_ids() == [joined.event_id, said.event_id]
    assert (await world.queued("dead"), await world.queued("irc")) == (3, 0)


async def test_rooms_and_aliases_bring_all_events_and_users_of_others_none(
    world: World, room: SeededRoom, bridge: Bridge, accounts: Database
) -> None:
    spaces = {"users": [{"exclusive": True, "regex": "@_irc_.*"}], "aliases": [{"exclusive": False, "regex": "#_irc_"}]}
    world.services[:] = [
        registration("irc", bridge.url, namespaces=spaces),
        registration("logger", bridge.url, namespaces={"rooms": [{"exclusive": False, "regex": ".*other.*"}]}),
    ]
    world.restart()
    await room.member(UserId("@_irc_x:there.org"), "join")
    await room.message(ALICE, "not for the bridge")
    await world.tell()
    async with accounts.transaction() as tx:
        await aliases.add_alias(tx, RoomAlias(f"#_irc_room:{SERVER}"), ROOM, ALICE, now_ms=1)
    said = await room.message(ALICE, "for the bridge")
    await world.tell()
    assert bridge.event_ids() == [said.event_id]
    other = await SeededRoom(accounts, RoomId(f"!another:{SERVER}")).create()
    message = await other.message(ALICE, "logged")
    await world.tell()
    assert bridge.event_ids()[-1] == message.event_id
    assert bridge.authorization == "Bearer hs_token of logger"


async def test_an_older_service_gets_its_transactions_where_it_expects_them(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    bridge.legacy = True
    await room.member(GHOST, "join")
    await world.tell()
    await room.message(ALICE, "hello")
    await world.tell()
    paths = [path.rpartition("/")[0] for _, path in bridge.tried]
    assert paths == ["/_matrix/app/v1/transactions", "/transactions", "/transactions"]
    assert len(bridge.events()) == 2


async def test_an_older_service_is_asked_once_an_hour_whether_it_is_a_newer_one(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    bridge.legacy = True
    await room.member(GHOST, "join")
    await world.tell()
    await world.clock.advance(LEGACY_SECONDS)
    bridge.tried.clear()
    for text in ("one", "two"):
        await room.message(ALICE, text)
        await world.tell()
    paths = [path.rpartition("/")[0] for _, path in bridge.tried]
    assert paths == ["/_matrix/app/v1/transactions", "/transactions", "/transactions"]


async def test_what_another_process_queued_is_not_queued_again(world: World, room: SeededRoom, bridge: Bridge) -> None:
    partition = world.shards.partition_of(ROOM)
    async with world.accounts.transaction() as tx:
        await consumer_cursors.move_cursor(tx, CONSUMER, partition, Cursor(1, room.position))
    await room.member(GHOST, "join")
    await room.message(ALICE, "hello")
    late = World(world.accounts, world.shards, world.clock, world.client, world.services)
    records = await _records(world, partition)
    prepared = await late.step.prepare(records)
    await world.tell()
    async with late.accounts.transaction() as tx:
        await late.step.apply(tx, records, prepared)
    await world.tell()
    assert len(bridge.events()) == 2


async def test_an_invite_from_elsewhere_is_told_with_what_is_known_of_the_room(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    """The server is not in the room: only a record tells of the invite."""
    elsewhere = RoomId("!r:there.org")
    sender = UserId("@x:there.org")
    shown = [
        {"type": "m.room.name", "state_key": "", "sender": sender, "content": {"name": "Far"}},
        {
            "type": "m.room.member",
            "state_key": GHOST,
            "sender": sender,
            "content": {"membership": "invite", "is_direct": True},
        },
    ]
    invite = StateMembership(GHOST, "invite", EventId("$invite"), sender, orjson.dumps(shown))
    gone = StateMembership(GHOST, "leave", EventId("$gone"), sender)
    await _take(world, elsewhere, 0, StateBody((), None, (invite,)))
    await _take(world, elsewhere, 1, StateBody((), None, (gone,)))
    async with asyncio.TaskGroup() as tasks:
        await world.sender.start_due(tasks)
    first, second = bridge.events()
    assert first == {
        "type": "m.room.member",
        "event_id": "$invite",
        "room_id": elsewhere,
        "sender": sender,
        "state_key": GHOST,
        "content": {"membership": "invite", "is_direct": True},
        "origin_server_ts": world.clock.now_ms(),
        "unsigned": {"invite_room_state": shown},
    }
    assert (second["event_id"], second["content"]) == ("$gone", {"membership": "leave"})


async def test_receipts_go_to_those_who_want_them(world: World, room: SeededRoom, bridge: Bridge) -> None:
    world.services.append(registration("quiet", bridge.url))
    world.restart()
    await room.member(GHOST, "join")
    await room.member(UserId(f"@_quiet_x:{SERVER}"), "join")
    await world.tell()
    bridge.taken.clear()
    read = [
        Receipt(ALICE, "m.read", "", EventId("$1"), 5),
        Receipt(BOB, "m.read", "$thread", EventId("$1"), 6),
        Receipt(BOB, "m.read", "main", EventId("$1"), 7),
    ]
    await _take(world, ROOM, room.position, ReceiptsBody(tuple(read)))
    later = Receipt(ALICE, "m.read", "", EventId("$2"), 9)
    await _take(world, ROOM, room.position + 1, ReceiptsBody((later,)))
    async with asyncio.TaskGroup() as tasks:
        await world.sender.start_due(tasks)
    ((_, body),) = bridge.taken
    assert body == {
        "events": [],
        "ephemeral": [
            {
                "type": "m.receipt",
                "room_id": ROOM,
                "content": {
                    "$1": {"m.read": {BOB: {"ts": 6, "thread_id": "$thread"}}},
                    "$2": {"m.read": {ALICE: {"ts": 9}}},
                },
            },
            {
                "type": "m.receipt",
                "room_id": ROOM,
                "content": {"$1": {"m.read": {BOB: {"ts": 7, "thread_id": "main"}}}},
            },
        ],
    }
    assert bridge.authorization == "Bearer hs_token of irc"


async def test_a_message_that_concerns_nobody_costs_the_account_store_nothing(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    await world.tell()
    await room.message(ALICE, "hello")
    records = await _records(world, world.shards.partition_of(ROOM), room.position - 1)
    async with world.accounts.counting_here() as count:
        await world.step.prepare(records)
    assert count.statements == 0
    assert bridge.tried == []


async def test_a_room_whose_members_could_not_be_read_is_not_taken_for_an_empty_one(
    world: World, room: SeededRoom, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.member(GHOST, "join")
    await world.tell()
    world.restart()
    said = await room.message(ALICE, "hello")
    records = await _records(world, world.shards.partition_of(ROOM), room.position - 1)

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("the shard is away")

    with monkeypatch.context() as patch:
        patch.setattr(appservice_reads, "list_local_members_at", fail)
        with pytest.raises(DatabaseUnavailable):
            await world.step.prepare(records)
    await world.tell()
    assert bridge.event_ids()[1:] == [said.event_id]


async def test_a_service_that_was_given_up_before_its_work_began_can_be_taken_on_again(
    world: World, room: SeededRoom, bridge: Bridge
) -> None:
    joined = await room.member(GHOST, "join")
    await world.consumer.catch_up()
    async with asyncio.TaskGroup() as tasks:
        assert await world.sender.start_due(tasks) == 1
        await world.sender.give_up(range(PARTITIONS))
    assert bridge.tried == []
    world.sender.take_on(range(PARTITIONS))
    await world.tell()
    assert bridge.event_ids() == [joined.event_id]


async def test_a_service_that_is_given_up_while_it_is_looked_up_is_left_to_the_next_process(
    world: World, room: SeededRoom, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.member(GHOST, "join")
    await world.consumer.catch_up()
    list_due = appservice_queue.list_due

    async def list_and_lose(tx: Transaction, service_ids: Sequence[str]) -> list[DueService]:
        due = await list_due(tx, service_ids)
        await world.sender.give_up(range(PARTITIONS))
        return due

    monkeypatch.setattr(appservice_queue, "list_due", list_and_lose)
    async with asyncio.TaskGroup() as tasks:
        assert await world.sender.start_due(tasks) == 0
    assert bridge.tried == []
    assert await world.queued() == 1


async def _records(world: World, partition: int, after: int | None = None) -> list[LogRecord]:

    async with world.accounts.reading() as tx:
        cursors = await consumer_cursors.list_cursors(tx, CONSUMER)
    begin = cursors[partition].position if after is None else after
    async with world.shards.of_partition(partition).reading() as tx:
        return list(await list_records(tx, partition, begin, 1 << 40, 100))


async def _take(world: World, room_id: RoomId, previous: int, body: StateBody | ReceiptsBody) -> None:
    """A record that lies in no table."""
    kind = RecordKind.STATE if isinstance(body, StateBody) else RecordKind.RECEIPTS
    record = LogRecord(1, world.shards.partition_of(room_id), previous + 1, room_id, previous, kind, body)
    prepared = await world.step.prepare([record])
    async with world.accounts.transaction() as tx:
        await world.step.apply(tx, [record], prepared)

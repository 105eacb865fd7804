"""Sending queues to servers of every kind: one transaction at a time, and the dead are in nobody's way."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from services.federation_out import sending
from services.federation_out.ephemeral import EphemeralEdus
from services.federation_out.queue_step import QueueStep
from services.federation_out.room_servers import RoomServers
from services.federation_out.sending import UNACCEPTABLE_AFTER, Sender
from tessera.clock import SystemClock
from tessera.federation.errors import PeerRefused, PeerUnreachable
from tessera.federation.policy import FederationPolicy
from tessera.ids import IdSource
from tessera.records import EventBody, LogRecord, Receipt, ReceiptsBody, RecordKind
from tessera.storage import federation_destinations, federation_queue
from tessera.storage.database import Database
from tessera.storage.federation_queue import Lane, NewEdu
from tessera.storage.shards import RoomShards
from tessera.wakes import PresenceChange, TypingChange

OWN = ServerName("own.example")
ALICE = UserId(f"@alice:{OWN}")
A, B, DENIED = ServerName("a.example"), ServerName("b.example"), ServerName("denied.example")
ROOM = RoomId("!room:own.example")

_ADD_EVENT = """
INSERT INTO rooms.events (room_id, event_id, anchor, sub, type, sender, depth, origin_server_ts, received_ms,
    pdu, servers)
VALUES ($1, $2, $3, 0, 'm.room.message', $4, 1, 1, 1, $5, $6)
"""


@dataclass
class Peers:
    """What the other servers were sent, and what they answer."""

    answers: dict[str, Callable[[], Any]] = field(default_factory=dict)
    taken: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    tried: list[tuple[str, str, bytes]] = field(default_factory=list)
    under_way: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most_at_once: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(
        self, server: str, path: str, body: bytes, *, timeout_s: float = 0, max_bytes: int = 0
    ) -> dict[str, Any]:
        """Take a transaction, or not."""
        self.tried.append((server, path, body))
        self.under_way[server] += 1
        self.most_at_once = max(self.most_at_once, self.under_way[server])
        try:
            await asyncio.sleep(0)
            if (answer := self.answers.get(server)) is not None:
                result = answer()
                if asyncio.iscoroutine(result):
                    await result
            self.taken[server].append(orjson.loads(body))
        finally:
            self.under_way[server] -= 1
            self.news.set()
        return {"pdus": {}}

    def events(self, server: str) -> list[str]:
        """The IDs of the events that a server has taken."""
        return [pdu["id"] for transaction in self.taken[server] for pdu in transaction["pdus"]]

    def edus(self, server: str) -> list[str]:
        """The types of the EDUs that it has taken."""
        return [edu["edu_type"] for transaction in self.taken[server] for edu in transaction["edus"]]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that comes."""
        async with asyncio.timeout(10):
            while not holds():
                self.news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self.news.wait()


@dataclass
class World:
    """Federation_out on a real database, and its peers."""

    accounts: Database
    shards: RoomShards
    peers: Peers
    sender: Sender
    step: QueueStep
    ephemeral: EphemeralEdus
    position: int = 0

    async def say(self, *servers: ServerName, count: int = 1) -> None:
        """Events of a local user, as the writer commits and the consumer takes them."""
        records = []
        for _ in range(count):
            self.position += 1
            event_id = EventId(f"${self.position}")
            pdu = orjson.dumps({"id": event_id})
            await self.shards.of_room(ROOM).execute(
                _ADD_EVENT, ROOM, event_id, self.position, ALICE, pdu, list(servers)
            )
            body = EventBody(event_id, "m.room.message", None, ALICE, 1, b"{", servers=servers)
            records.append(LogRecord(1, 0, self.position, ROOM, 0, RecordKind.EVENT, body))
        await self.take(records)

    async def take(self, records: Sequence[LogRecord]) -> None:
        """The consumer's step over some records."""
        records = [record for record in records if self.step.concerns(record)]
        prepared = await self.step.prepare(records)
        async with self.accounts.transaction() as tx:
            after = await self.step.apply(tx, records, prepared)
        if after is not None:
            await after()

    async def make_due(self, server: ServerName) -> None:
        """Let the pause of a server be over."""
        await self.accounts.execute(
            "UPDATE accounts.federation_destinations SET due_at = now() WHERE destination = $1", server
        )

    async def failures(self, server: ServerName) -> int:
        """How often in a row it has failed."""
        async with self.accounts.reading() as tx:
            status = await federation_destinations.find_status(tx, server)
        return 0 if status is None else status.failures

    async def fail_times(self, server: ServerName, times: int) -> None:
        """Let a server that fails be tried so often."""
        for number in range(1, times + 1):
            await self.make_due(server)
            for _ in range(500):
                if await self.failures(server) >= number:
                    break
                await asyncio.sleep(0.02)

    async def settle(self, server: ServerName) -> None:
        """Wait until nothing waits for a server."""
        for _ in range(500):
            async with self.accounts.reading() as tx:
                status = await federation_destinations.find_status(tx, server)
            if status is not None and not status.pending:
                assert not status.catching_up
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"something waits for {server}")


@asynccontextmanager
async def _world(accounts: Database, shards: RoomShards) -> AsyncIterator[World]:
    clock, peers = SystemClock(), Peers()
    policy = FederationPolicy(OWN, denied=[DENIED])
    servers = RoomServers(shards, OWN, clock)
    ephemeral = EphemeralEdus(servers, policy, clock, OWN, shards.partitions)
    sender = Sender(
        accounts=accounts,
        shards=shards,
        client=peers,
        ephemeral=ephemeral,
        clock=clock,
        ids=IdSource(),
        server_name=OWN,
    )
    step = QueueStep(OWN, policy, servers, shards.partitions, sender.wake)
    running = [asyncio.create_task(sender.run()), asyncio.create_task(ephemeral.run(sender.wake))]
    sender.take_on(range(shards.partitions))
    try:
        yield World(accounts, shards, peers, sender, step, ephemeral)
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


@pytest.fixture
async def world(accounts: Database, shards: RoomShards) -> AsyncIterator[World]:
    """Everything, running."""
    async with _world(accounts, shards) as made:
        yield made


def _refuse(status: int) -> Callable[[], None]:
    def refuse() -> None:
        raise PeerRefused(status, "M_UNKNOWN", "no")

    return refuse


def _be_dead() -> None:
    raise PeerUnreachable("no route")


async def test_every_server_gets_its_events_in_order_and_fifty_at_most(world: World) -> None:
    await world.say(A, B, DENIED, count=120)
    await world.peers.until(lambda: len(world.peers.events(A)) == len(world.peers.events(B)) == 120)
    assert world.peers.events(A) == [f"${number}" for number in range(1, 121)]
    assert max(len(transaction["pdus"]) for transaction in world.peers.taken[A]) == 50
    assert world.peers.most_at_once == 1
    assert DENIED not in {server for server, _, _ in world.peers.tried}
    transaction = world.peers.taken[A][0]
    assert list(transaction) == ["edus", "origin", "origin_server_ts", "pdus"], "canonical JSON"
    assert transaction["origin"] == OWN
    await world.settle(A)
    await world.settle(B)
    assert await world.accounts.fetchval("SELECT count(*) FROM accounts.federation_pdus") == 0


async def test_a_transaction_is_repeated_with_its_id_and_bytes(world: World) -> None:
    world.peers.answers[A] = _be_dead
    await world.say(A)
    await world.fail_times(A, 3)
    await world.say(A)
    del world.peers.answers[A]
    await world.make_due(A)
    await world.peers.until(lambda: world.peers.events(A) == ["$1", "$2"])
    tries = [(path, body) for server, path, body in world.peers.tried if server == A]
    assert tries[0] == tries[1] == tries[2] == tries[3]
    assert len(set(tries)) == 2


async def test_after_an_outage_a_server_gets_the_newest_event_of_a_room(world: World) -> None:
    world.peers.answers[A] = _be_dead
    await world.say(A)
    await world.fail_times(A, 2)
    await world.say(A, B, count=30)
    await world.say(B)
    del world.peers.answers[A]
    await world.make_due(A)
    await world.peers.until(lambda: len(world.peers.events(A)) == 2)
    assert world.peers.events(A) == ["$1", "$31"], "$32 was not for it"
    await world.settle(A)
    await world.say(A, count=2)
    await world.peers.until(lambda: len(world.peers.events(A)) == 4)
    assert world.peers.events(A)[2:] == ["$33", "$34"], "event by event again"


async def test_dead_and_slow_servers_hold_nobody_up(world: World) -> None:
    gate = asyncio.Event()
    dead = [ServerName(f"dead{number}.example") for number in range(100)]
    for server in dead:
        world.peers.answers[server] = gate.wait
    await world.say(*dead)
    await world.peers.until(lambda: len(world.peers.tried) == 100)
    await world.say(A)
    await world.peers.until(lambda: world.peers.events(A) == ["$2"])
    gate.set()


async def test_servers_of_which_nobody_knows_hold_up_none_that_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "UNPROVEN_PLACES", 5)
    await world.say(A)
    await world.settle(A)
    gate = asyncio.Event()
    silent = [ServerName(f"silent{number}.example") for number in range(20)]
    for server in silent:
        world.peers.answers[server] = gate.wait
    await world.say(*silent)
    await world.peers.until(lambda: len(world.peers.tried) == 6)
    await world.say(A)
    await world.peers.until(lambda: world.peers.events(A) == ["$1", "$3"])
    assert len(world.peers.tried) == 7
    gate.set()
    await world.peers.until(lambda: all(world.peers.events(server) == ["$2"] for server in silent))


async def test_what_a_server_never_accepts_is_dropped_in_the_end(world: World) -> None:
    world.peers.answers[A] = _refuse(400)
    await world.say(A)
    await world.fail_times(A, UNACCEPTABLE_AFTER - 1)
    await world.make_due(A)
    await world.peers.until(lambda: len(world.peers.tried) == UNACCEPTABLE_AFTER)
    del world.peers.answers[A]
    await world.say(A)
    await world.peers.until(lambda: world.peers.events(A) == ["$2"])


async def test_receipts_typing_and_presence_go_to_the_servers_in_the_room(world: World) -> None:
    await world.shards.of_room(ROOM).execute(
        "INSERT INTO rooms.room_servers (room_id, server_name, joined_count) VALUES ($1, $2, 1), ($1, $3, 0)",
        ROOM,
        A,
        B,
    )
    await world.shards.of_room(ROOM).execute(
        "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
        " VALUES ($1, 'm.room.member', $2, '$m', 1, 'join')",
        ROOM,
        ALICE,
    )
    receipts = (
        Receipt(ALICE, "m.read", "", EventId("$1"), 5),
        Receipt(ALICE, "m.read", "main", EventId("$2"), 6),
        Receipt(UserId("@bob:a.example"), "m.read", "", EventId("$1"), 5),
    )
    await world.take([LogRecord(1, 0, 1, ROOM, 0, RecordKind.RECEIPTS, ReceiptsBody(receipts))])
    await world.peers.until(lambda: world.peers.edus(A).count("m.receipt") == 2)
    contents = [edu["content"][ROOM]["m.read"] for one in world.peers.taken[A] for edu in one["edus"]]
    assert contents == [
        {ALICE: {"data": {"ts": 5}, "event_ids": ["$1"]}},
        {ALICE: {"data": {"thread_id": "main", "ts": 6}, "event_ids": ["$2"]}},
    ]
    for _ in range(3):
        world.ephemeral.on_typing(TypingChange(ROOM, ALICE, 30_000))
    world.ephemeral.on_presence(PresenceChange(ALICE, "online", "busy", 1, currently_active=True))
    world.ephemeral.on_typing(TypingChange(ROOM, UserId("@bob:a.example"), 30_000))
    await world.peers.until(lambda: {"m.typing", "m.presence"} <= set(world.peers.edus(A)))
    assert world.peers.edus(A).count("m.typing") == 1
    world.ephemeral.on_typing(TypingChange(ROOM, ALICE, 0))
    await world.peers.until(lambda: world.peers.edus(A).count("m.typing") == 2)
    last = world.peers.taken[A][-1]["edus"][-1]["content"]
    assert last == {"room_id": ROOM, "user_id": ALICE, "typing": False}
    assert B not in world.peers.taken


async def test_to_device_messages_come_first(world: World) -> None:
    gate = asyncio.Event()
    world.peers.answers[A] = gate.wait
    await world.say(A)
    await world.peers.until(lambda: bool(world.peers.tried))
    edus = [NewEdu(A, Lane.RECEIPTS, b'{"edu_type":"m.receipt"}') for _ in range(99)]
    edus += [NewEdu(A, Lane.TO_DEVICE, b'{"edu_type":"m.direct_to_device"}') for _ in range(2)]
    async with world.accounts.transaction() as tx:
        await federation_queue.add_edus(tx, edus, world.shards.partitions)
    gate.set()
    await world.peers.until(lambda: len(world.peers.edus(A)) == 101)
    assert world.peers.edus(A)[:3] == ["m.direct_to_device"] * 2 + ["m.receipt"]
    assert len(world.peers.taken[A][1]["edus"]) == 100


async def test_buckets_that_are_given_up_are_left_to_others(world: World) -> None:
    world.peers.answers[A] = asyncio.Event().wait
    await world.say(A)
    await world.peers.until(lambda: bool(world.peers.tried))
    await world.sender.give_up(world.sender.partitions)
    assert not world.sender.partitions
    del world.peers.answers[A]
    world.sender.take_on([federation_queue.bucket_of(A, world.shards.partitions)])
    await world.peers.until(lambda: world.peers.events(A) == ["$1"])
    assert world.peers.tried[0][1] == world.peers.tried[1][1], "the same transaction"

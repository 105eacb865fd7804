"""What becomes of EDUs: only users of their server count, messages arrive once, gaps in device lists are noticed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from services.federation_in import edus
from services.federation_in.device_resync import DeviceResync
from services.federation_in.edus import PassingEdus
from services.federation_in.signs_of_life import SignsOfLife
from services.federation_in.stored_edus import StoredEdus
from tessera.clock import FakeClock, SystemClock
from tessera.commands import Command, Outcome, OutcomeStatus, SetReceipts
from tessera.fanout import LocalFanout, Subscriber
from tessera.federation.errors import PeerUnreachable
from tessera.ids import IdSource
from tessera.storage import (
    device_changes,
    federation_destinations,
    federation_queue,
    presence,
    received_transactions,
    remote_devices,
    to_device,
)
from tessera.storage.database import Database
from tessera.storage.federation_destinations import Failure
from tessera.storage.federation_queue import NewPdu
from tessera.storage.shards import RoomShards
from tessera.wakes import PresenceChange, TypingChange

OWN, THERE = ServerName("own.example"), ServerName("there.example")
ALICE, BOB, CAROL = UserId(f"@alice:{OWN}"), UserId(f"@bob:{THERE}"), UserId(f"@carol:{THERE}")
EVE = UserId("@eve:elsewhere.example")
ROOM, BANNED = RoomId("!room:x"), RoomId("!banned:x")


@dataclass
class Commands:
    """Takes the commands of receipts; those of a room with a gate once it is open."""

    submitted: list[Command] = field(default_factory=list)
    gates: dict[RoomId, asyncio.Event] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def submit(self, command: Command, *, timeout_seconds: float) -> Outcome:
        """Accept."""
        self.submitted.append(command)
        self.news.set()
        if (gate := self.gates.get(command.room_id)) is not None:
            await gate.wait()
        return Outcome(command.id, OutcomeStatus.ACCEPTED, command.partition)

    async def until(self, count: int) -> list[tuple[RoomId, list[str]]]:
        """Once there are so many: the rooms, and the events of their receipts."""
        async with asyncio.timeout(10):
            while len(self.submitted) < count:
                self.news.clear()
                await self.news.wait()
        bodies = [(one.room_id, one.body) for one in self.submitted]
        return [(room, [r.event_id for r in body.receipts]) for room, body in bodies if isinstance(body, SetReceipts)]


@dataclass
class Peer:
    """Answers GET /user/devices."""

    answer: dict[str, Any] | None = None
    asked: list[str] = field(default_factory=list)

    async def get(self, server: str, path: str, *, timeout_s: float, max_bytes: int) -> dict[str, Any]:
        """The answer, if there is one."""
        self.asked.append(path)
        if self.answer is None:
            raise PeerUnreachable("no answer")
        return self.answer


@dataclass
class World:
    """The parts that take EDUs in, with a room of Alice and Bob, and one whose ACL keeps their server out."""

    accounts: Database
    shards: RoomShards
    passing: PassingEdus
    stored: StoredEdus
    resync: DeviceResync
    peer: Peer
    commands: Commands
    typing: list[TypingChange]
    presences: list[PresenceChange]
    txn: int = 0

    async def receive(self, edu_type: str, content: Mapping[str, Any]) -> None:
        """One EDU of their server, as /send has it."""
        edu = {"edu_type": edu_type, "content": content}
        if edu_type in ("m.typing", "m.receipt", "m.presence"):
            await self.passing.receive(THERE, [edu])
            return
        self.txn += 1
        async with self.accounts.transaction() as tx:
            await received_transactions.add(tx, THERE, f"t{self.txn}", b"{}", [edu], 1)
        while await self.stored.work_off():
            pass

    @asynccontextmanager
    async def bringing(self) -> AsyncIterator[None]:
        """Receipts go to their rooms inside the block."""
        task = asyncio.create_task(self.passing.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def update(self, stream_id: int, previous: list[int], **extra: Any) -> None:
        """A device update of Bob."""
        content = {"user_id": BOB, "device_id": "DEV", "stream_id": stream_id, "prev_id": previous, **extra}
        await self.receive("m.device_list_update", content)

    async def kept(self) -> remote_devices.RemoteList:
        """What is kept of Bob's devices."""
        async with self.accounts.reading() as tx:
            return (await remote_devices.list_lists(tx, [BOB]))[BOB]

    async def devices(self) -> list[str]:
        """Bob's devices that are kept."""
        async with self.accounts.reading() as tx:
            return sorted((await remote_devices.list_devices(tx, [BOB])).get(BOB, {}))

    async def changes(self) -> list[tuple[str, str]]:
        """What clients hear of."""
        async with self.accounts.reading() as tx:
            rows = await device_changes.list_changes(tx, 0, await device_changes.find_head(tx))
        return [(row.change.user_id, row.change.device_id) for row in rows]


async def _make_room(shards: RoomShards, room_id: RoomId) -> None:
    """A room of Alice and Bob."""
    database = shards.of_room(room_id)
    await database.execute(
        "INSERT INTO rooms.rooms (room_id, partition, room_version, creator, create_event_id, created_ms,"
        " forward_extremities, depth, last_position) VALUES ($1, $2, '12', $3, '$c', 1, '{}', 1, 1)",
        room_id,
        shards.partition_of(room_id),
        ALICE,
    )
    await database.execute("INSERT INTO rooms.room_servers VALUES ($1, $2, 1), ($1, $3, 1)", room_id, OWN, THERE)
    for user_id in (ALICE, BOB):
        await database.execute(
            "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
            " VALUES ($1, 'm.room.member', $2, '$m', 1, 'join')",
            room_id,
            user_id,
        )


@pytest.fixture
async def world(accounts: Database, shards: RoomShards) -> World:
    """Everything, with nothing running."""
    fanout, commands, peer, clock = LocalFanout(), Commands(), Peer(), SystemClock()
    typing: list[TypingChange] = []
    presences: list[PresenceChange] = []
    await fanout.subscribe(Subscriber(on_typing=typing.append, on_presence=presences.append))
    acl = orjson.dumps({"content": {"allow": ["*"], "deny": [THERE]}})
    for room_id in (ROOM, BANNED):
        await _make_room(shards, room_id)
    await shards.of_room(BANNED).execute(
        "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor)"
        " VALUES ($1, 'm.room.server_acl', '', '$acl', 1)",
        BANNED,
    )
    await shards.of_room(BANNED).execute(
        "INSERT INTO rooms.events (room_id, event_id, type, sender, depth, origin_server_ts, received_ms, pdu)"
        " VALUES ($1, '$acl', 'm.room.server_acl', $2, 1, 1, 1, $3)",
        BANNED,
        ALICE,
        acl,
    )
    await accounts.execute("INSERT INTO accounts.users (user_id, created_ts) VALUES ($1, 1)", ALICE)
    await accounts.execute(
        "INSERT INTO accounts.devices (user_id, device_id, created_ts) VALUES ($1, 'ONE', 1), ($1, 'TWO', 1)", ALICE
    )
    passing = PassingEdus(
        accounts=accounts,
        shards=shards,
        fanout=fanout,
        commands=commands,  # type: ignore[arg-type]
        clock=clock,
        ids=IdSource(),
        server_name=OWN,
        presence_enabled=True,
    )
    stored = StoredEdus(accounts, shards, fanout, clock, OWN)
    resync = DeviceResync(accounts, shards, peer, fanout, clock, OWN)  # type: ignore[arg-type]
    return World(accounts, shards, passing, stored, resync, peer, commands, typing, presences)


async def test_typing_counts_for_members_of_their_server_and_where_the_acl_lets_it(world: World) -> None:
    for room_id, user_id in ((ROOM, BOB), (ROOM, CAROL), (ROOM, ALICE), (ROOM, EVE), (BANNED, BOB), ("!none:x", BOB)):
        await world.receive("m.typing", {"room_id": room_id, "user_id": user_id, "typing": True})
    await world.receive("m.typing", {"room_id": ROOM, "user_id": BOB, "typing": False})
    assert [(one.room_id, one.user_id, one.timeout_ms > 0) for one in world.typing] == [
        (ROOM, BOB, True),
        (ROOM, BOB, False),
    ]


async def test_receipts_become_one_command_for_a_room(world: World) -> None:
    receipt = {"data": {"ts": 7}, "event_ids": ["$e"]}
    await world.receive("m.receipt", {ROOM: {"m.read": {BOB: receipt, CAROL: receipt, EVE: receipt}}})
    threaded = {"data": {"ts": "late", "thread_id": "main"}, "event_ids": ["$f"]}
    await world.receive("m.receipt", {ROOM: {"m.read": {BOB: threaded}, "m.read.private": {BOB: receipt}}})
    await world.receive("m.receipt", {ROOM: {"m.read": {BOB: {"data": 3, "event_ids": []}}}, "!x": [], BANNED: {}})
    async with world.bringing():
        await world.commands.until(1)
    (command,) = world.commands.submitted
    assert isinstance(command.body, SetReceipts)
    found = [(one.user_id, one.thread_id, one.event_id, one.ts) for one in command.body.receipts]
    assert found == [(BOB, "", "$e", 7), (BOB, "main", "$f", 0)]


async def test_a_room_whose_writer_is_away_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edus, "GATHER_SECONDS", 0.0)
    rooms, partition_of = (RoomId(f"!{number}:x") for number in range(99)), world.shards.partition_of
    other = next(room_id for room_id in rooms if partition_of(room_id) != partition_of(ROOM))
    await _make_room(world.shards, other)
    gate = world.commands.gates[ROOM] = asyncio.Event()

    async def read(room_id: RoomId, event_id: str) -> None:
        receipt = {"data": {"ts": 7}, "event_ids": [event_id]}
        await world.receive("m.receipt", {room_id: {"m.read": {BOB: receipt}}})

    async with world.bringing():
        await read(ROOM, "$1")
        assert await world.commands.until(1) == [(ROOM, ["$1"])]
        await read(ROOM, "$2")
        await read(ROOM, "$3")
        await read(other, "$4")
        assert (await world.commands.until(2))[1:] == [(other, ["$4"])]
        gate.set()
        assert (await world.commands.until(3))[2:] == [(ROOM, ["$3"])]


async def test_presence_counts_for_who_shares_a_room(world: World) -> None:
    push = [{"user_id": user, "presence": "online", "last_active_ago": 5} for user in (BOB, CAROL, EVE, ALICE)]
    push += [{"user_id": BOB, "presence": "dancing"}, {"presence": "online"}]
    await world.receive("m.presence", {"push": push})
    assert [(one.user_id, one.presence) for one in world.presences] == [(BOB, "online")]
    async with world.accounts.reading() as tx:
        assert [one.user_id for one in await presence.list_presence(tx, [BOB, CAROL, EVE, ALICE])] == [BOB]


async def test_a_message_reaches_each_device_once(world: World) -> None:
    message = {
        "sender": BOB,
        "type": "m.secret",
        "message_id": "m1",
        "messages": {ALICE: {"*": {"n": 1}, "TWO": {"n": 2}, "GONE": {}}, BOB: {"*": {}}, "@x:own.example": {"*": {}}},
    }
    for _ in range(2):
        await world.receive("m.direct_to_device", message)
    await world.receive("m.direct_to_device", {**message, "sender": EVE, "message_id": "m2"})
    async with world.accounts.reading() as tx:
        one = await to_device.list_messages(tx, ALICE, "ONE", 0)
        two = await to_device.list_messages(tx, ALICE, "TWO", 0)
        assert await received_transactions.list_edus(tx, 10) == []
    assert [(each.sender, each.type, each.content) for each in one] == [(BOB, "m.secret", b'{"n":1}')]
    assert [each.content for each in two] == [b'{"n":2}']


async def test_messages_do_not_overtake_those_that_another_process_has(world: World) -> None:
    elsewhere = ServerName(EVE.partition(":")[2])
    for number, (origin, sender) in enumerate(((THERE, BOB), (THERE, BOB), (elsewhere, EVE))):
        content = {"sender": sender, "type": "m.secret", "message_id": f"m{number}"}
        edu = {"edu_type": "m.direct_to_device", "content": {**content, "messages": {ALICE: {"ONE": {"n": number}}}}}
        async with world.accounts.transaction() as tx:
            await received_transactions.add(tx, origin, f"t{number}", b"{}", [edu], 1)

    async def told() -> list[bytes]:
        async with world.accounts.reading() as tx:
            return [one.content for one in await to_device.list_messages(tx, ALICE, "ONE", 0)]

    async with world.accounts.transaction() as other:
        first, *_ = await received_transactions.list_edus(other, 10)
        assert await received_transactions.lock_edus(other, [first.edu_id]) == [first.edu_id]
        assert await world.stored.work_off()
        assert not await world.stored.work_off(), "what is left is the other's"
        assert await told() == [b'{"n":2}']
    assert await world.stored.work_off()
    assert await told() == [b'{"n":2}', b'{"n":0}', b'{"n":1}']


def _keys(device_id: str = "DEV", user_id: UserId = BOB) -> dict[str, Any]:
    return {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": {}, "signatures": {}}


async def test_a_gap_in_device_updates_is_noticed_and_the_list_asked_for(world: World) -> None:
    await world.update(5, [], keys=_keys())
    assert await world.changes() == [(BOB, "DEV")], "clients hear of it though nothing is kept"
    async with world.accounts.transaction() as tx:
        await remote_devices.ask_for(tx, [BOB])
    world.peer.answer = {
        "user_id": BOB,
        "stream_id": 5,
        "devices": [
            {"device_id": "DEV", "keys": _keys()},
            {"device_id": "LIE", "keys": _keys("LIE", CAROL)},
        ],
        "master_key": {"user_id": BOB, "usage": ["master"], "keys": {"ed25519:a": "a"}},
        "self_signing_key": {"user_id": CAROL, "usage": ["self_signing"], "keys": {"ed25519:b": "b"}},
    }
    assert await world.resync.ask_stale() == 1
    known = await world.kept()
    assert (known.stream_id, known.stale, known.self_signing_key) == (5, False, None)
    assert known.master_key is not None
    assert await world.devices() == ["DEV"]
    await world.update(6, [5], deleted=True)
    assert (await world.kept()).stream_id == 6
    assert await world.devices() == []
    await world.update(8, [7], keys=_keys())
    assert (await world.kept()).stale
    assert await world.devices() == []
    world.peer.answer["stream_id"] = 8
    await world.resync.ask_stale()
    assert not (await world.kept()).stale
    assert await world.devices() == ["DEV"]


async def test_lists_of_who_shares_no_room_are_forgotten_and_others_asked_for_later(world: World) -> None:
    async with world.accounts.transaction() as tx:
        await remote_devices.ask_for(tx, [BOB, CAROL])
    assert await world.resync.ask_stale() == 2
    assert len(world.peer.asked) == 1, "nobody asks for Carol, who is in no room"
    assert (await world.kept()).stale
    assert await world.resync.ask_stale() == 0, "after a failure there is a pause"
    async with world.accounts.reading() as tx:
        assert await remote_devices.list_kept(tx, [BOB, CAROL]) == [BOB]


async def test_clients_hear_of_a_list_that_was_wrong(world: World) -> None:
    """What is asked for after a time without a room in common differs; what is the same is nobody's business."""
    async with world.accounts.transaction() as tx:
        await remote_devices.ask_for(tx, [BOB])
    world.peer.answer = {"user_id": BOB, "stream_id": 5, "devices": [{"device_id": "DEV", "keys": _keys()}]}
    await world.resync.ask_stale()
    assert await world.changes() == [], "whoever asked first was told by the server itself"
    for answer_devices, heard in (([], 1), ([], 1), ([{"device_id": "NEW", "keys": _keys("NEW")}], 2)):
        async with world.accounts.transaction() as tx:
            await remote_devices.mark_stale(tx, [BOB])
        world.peer.answer = {"user_id": BOB, "stream_id": 9, "devices": answer_devices}
        await world.resync.ask_stale()
        assert await world.changes() == [(BOB, "")] * heard
    assert await world.devices() == ["NEW"]


async def test_clients_hear_of_a_list_that_its_server_could_not_tell_at_first(world: World) -> None:
    async with world.accounts.transaction() as tx:
        await remote_devices.ask_for(tx, [BOB])
    await world.resync.ask_stale()
    await world.accounts.execute("UPDATE accounts.remote_device_lists SET ask_at = now()")
    world.peer.answer = {"user_id": BOB, "stream_id": 5, "devices": [{"device_id": "DEV", "keys": _keys()}]}
    await world.resync.ask_stale()
    assert await world.changes() == [(BOB, "")]


async def test_an_update_that_comes_during_the_answer_makes_it_void(world: World) -> None:
    async with world.accounts.transaction() as tx:
        await remote_devices.ask_for(tx, [BOB])
        (stale,) = await remote_devices.take_stale(tx, 1)
    await world.update(9, [], keys=_keys())
    async with world.accounts.transaction() as tx:
        assert await remote_devices.replace_list(tx, BOB, stale.changed, 8, {}, (None, None)) is None
    assert (await world.kept()).stale


async def test_cross_signing_keys_are_taken_from_their_own_server_alone(world: World) -> None:
    key = {"user_id": BOB, "usage": ["master"], "keys": {"ed25519:a": "a"}}
    await world.receive("m.signing_key_update", {"user_id": BOB, "master_key": key})
    await world.receive("m.signing_key_update", {"user_id": EVE, "master_key": {**key, "user_id": EVE}})
    await world.receive("m.signing_key_update", {"user_id": CAROL, "master_key": key})
    await world.receive("m.signing_key_update", {"user_id": BOB, "master_key": {**key, "usage": ["self_signing"]}})
    assert await world.changes() == [(BOB, "")]


async def test_who_sends_is_sent_to_again(world: World) -> None:
    async with world.accounts.transaction() as tx:
        await federation_queue.add_pdus(tx, [NewPdu(THERE, ROOM, EventId("$e"))], 64)
        await federation_destinations.fail(tx, [Failure(THERE, "no route", 3600)])
        await tx.execute("UPDATE accounts.federation_destinations SET last_attempt = now() - interval '1 hour'")
    clock = FakeClock()
    life = SignsOfLife(world.accounts, clock)
    for server in (EVE.partition(":")[2], THERE):
        await life.note(ServerName(server))

    async def waits_seconds() -> float:
        seconds: float = await world.accounts.fetchval(
            "SELECT extract(epoch FROM due_at - now())::float8 FROM accounts.federation_destinations"
        )
        return seconds

    assert await waits_seconds() <= 0
    await world.accounts.execute("UPDATE accounts.federation_destinations SET due_at = now() + interval '1 hour'")
    await life.note(THERE)
    assert await waits_seconds() > 3000, "not with each request"
    clock.shift(60)
    await life.note(THERE)
    assert await waits_seconds() <= 0

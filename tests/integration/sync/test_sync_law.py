"""The law of /sync: initial sync plus deltas, cut at any tokens, equals a fresh initial sync.

Random room histories on two processes that lose and repeat hints and hear of memberships late, with clients that go
from one process to the other. Besides, each client sees each event of a room once and in order, or is told that
its timeline is limited.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from room_writing import SERVER, WriteRefused, changes_of
from sync_world import SyncClient, World, running_world

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.records import LogRecord, PartitionBatch
from tessera.storage import user_rooms
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

USERS = [UserId(f"@{name}:{SERVER}") for name in ("ann", "ben", "cat")]
PARTITIONS = 64
_CURRENT_KEYS = "SELECT room_id, type, state_key FROM rooms.current_state"
EXAMPLES = 12
STEPS = 40


class ModelClient:
    """What a client knows from its answers."""

    def __init__(self, user_id: UserId, *, limit: int, state_after: bool) -> None:
        self.user_id = user_id
        self.query: dict[str, Any] = {"filter": {"room": {"timeline": {"limit": limit}}}}
        if state_after:
            self.query["use_state_after"] = "true"
        self.since: str | None = None
        self.invites: set[str] = set()
        self.states: dict[str, dict[tuple[str, str], str]] = {}
        self.unread: dict[str, Any] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, int] = {}

    def fresh(self) -> "ModelClient":
        """Another client with the same wishes that knows nothing."""
        other = ModelClient(self.user_id, limit=0, state_after=False)
        other.query = self.query
        return other

    def apply(self, answer: dict[str, Any], positions: dict[str, dict[str, int]]) -> None:
        """Take an answer."""
        rooms = answer.get("rooms", {})
        for room_id in rooms.get("invite", {}):  # where the user was joined before, it ended in between
            self._drop(room_id)
            self.invites.add(room_id)
        for room_id, section in rooms.get("leave", {}).items():
            self._check_order(room_id, section, positions[room_id])
            self._drop(room_id)
        for room_id, section in rooms.get("join", {}).items():
            self.invites.discard(room_id)
            self._check_order(room_id, section, positions[room_id])
            state = self.states.setdefault(room_id, {})
            told = section.get("state_after")
            events = told["events"] if told is not None else section["state"]["events"] + section["timeline"]["events"]
            for event in events:
                if "state_key" in event:
                    state[event["type"], event["state_key"]] = event["event_id"]
            if "unread_notifications" in section:
                self.unread[room_id] = section["unread_notifications"]
            self.summaries.setdefault(room_id, {}).update(section.get("summary", {}))
        self.since = answer["next_batch"]

    def _drop(self, room_id: str) -> None:
        self.invites.discard(room_id)
        for known in (self.states, self.unread, self.summaries, self.seen):
            known.pop(room_id, None)

    def _check_order(self, room_id: str, section: dict[str, Any], positions: dict[str, int]) -> None:
        order = [positions[event["event_id"]] for event in section["timeline"]["events"]]
        assert order == sorted(set(order))
        before = self.seen.get(room_id)
        if order and before is not None and not section["timeline"]["limited"]:
            between = [one for one in positions.values() if before < one <= order[-1]]
            assert sorted(between) == order, "events are missing or come twice"
        if order:
            self.seen[room_id] = order[-1]
        elif section["timeline"]["limited"]:
            self.seen.pop(room_id, None)

    def knowledge(self, current: dict[str, set[tuple[str, str]]]) -> tuple[Any, ...]:
        """What has to be equal to that of a fresh client; of keys that a resolution emptied no client can be told."""
        states = {
            room_id: {key: event_id for key, event_id in state.items() if key in current[room_id]}
            for room_id, state in self.states.items()
        }
        # Heroes stand in for a name: they need not be kept up for a room that has one.
        summaries = {
            room_id: {
                key: value
                for key, value in summary.items()
                if key != "m.heroes" or ("m.room.name", "") not in states[room_id]
            }
            for room_id, summary in self.summaries.items()
        }
        return states, self.invites, self.unread, summaries


def branch_event(what: str, first: UserId, user: UserId) -> tuple[str, dict[str, Any], str | None]:
    """(type, content, state key) of something that may happen on a branch."""
    match what:
        case "topic" | "name":
            return f"m.room.{what}", {what: "on a branch"}, ""
        case "closed":
            return "m.room.join_rules", {"join_rule": "invite"}, ""
        case "levels":
            levels = {"users": {first: 100, user: 10}, "users_default": 50, "state_default": 20, "invite": 50}
            return "m.room.power_levels", levels, ""
        case "message":
            return "m.room.message", {"msgtype": "m.text", "body": "on a branch"}, None
        case _:
            return "m.room.member", {"membership": what}, user


class SyncLaw(RuleBasedStateMachine):
    """Histories, hints and clients."""

    rooms = Bundle("rooms")
    messages = Bundle("messages")
    batches = Bundle("batches")
    late = Bundle("late")

    runner: asyncio.Runner
    new_database: Callable[[], Coroutine[Any, Any, str]]

    def __init__(self) -> None:
        super().__init__()
        self.clients = [
            ModelClient(user_id, limit=limit, state_after=state_after)
            for user_id in USERS
            for limit, state_after in ((2, False), (3, True), (50, False))
        ]
        self.positions: dict[str, dict[str, int]] = {}
        self.unprojected: list[PartitionBatch] = []

    @initialize()
    def begin(self) -> None:
        """Two processes on an empty database."""
        self._do(self._open())

    async def _open(self) -> None:
        self.database = await Database.connect(await type(self).new_database(), max_size=20)
        shards = RoomShards({"main": self.database}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
        self.context = running_world(self.database, shards, services=2)
        self.world: World = await self.context.__aenter__()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self._do(self._close())

    async def _close(self) -> None:
        try:
            await self._compare()
        finally:
            await self.context.__aexit__(None, None, None)
            await self.database.close()

    @rule(target=rooms, user=st.sampled_from(USERS), named=st.booleans())
    def create(self, user: UserId, named: bool) -> RoomId:
        batches = self._do(self.world.writer.create(user, name="n" if named else None))
        for batch in batches:
            self._publish(batch)
        return list(self.world.writer.rooms)[-1]

    @rule(target=batches, room=rooms, user=st.sampled_from(USERS), hint=st.sampled_from(["heard", "lost", "late"]))
    def join_or_leave(self, room: RoomId, user: UserId, hint: str) -> Any:
        members = self.world.writer.rooms[room].members
        membership = "leave" if members.get(user) == "join" else "join"
        return self._write(self.world.writer.member(room, user, membership), hint)

    @rule(target=batches, room=rooms, sender=st.sampled_from(USERS), user=st.sampled_from(USERS), ban=st.booleans())
    def invite_or_ban(self, room: RoomId, sender: UserId, user: UserId, ban: bool) -> Any:
        members = self.world.writer.rooms[room].members
        if sender == user or members.get(sender) != "join" or (not ban and members.get(user) == "join"):
            return multiple()
        membership = "ban" if ban else "invite"
        return self._write(self.world.writer.member(room, user, membership, sender=sender))

    @rule(target=batches, room=rooms, user=st.sampled_from(USERS), hint=st.sampled_from(["heard", "lost"]))
    def rename_oneself(self, room: RoomId, user: UserId, hint: str) -> Any:
        if self.world.writer.rooms[room].members.get(user) != "join":
            return multiple()
        return self._write(self.world.writer.member(room, user, "join", displayname="d"), hint)

    @rule(
        target=messages,
        room=rooms,
        user=st.sampled_from(USERS),
        count=st.integers(1, 4),
        mention=st.sampled_from([None, *USERS]),
        hint=st.sampled_from(["heard", "heard", "lost"]),
    )
    def say(self, room: RoomId, user: UserId, count: int, mention: UserId | None, hint: str) -> Any:
        if self.world.writer.rooms[room].members.get(user) != "join":
            return multiple()
        more = {} if mention is None else {"m.mentions": {"user_ids": [mention]}}
        for number in range(count):
            batch = self._write(self.world.writer.message(room, user, str(number), **more), hint)
        return batch.records[0]

    @rule(root=messages, user=st.sampled_from(USERS))
    def reply_in_thread(self, root: LogRecord, user: UserId) -> None:
        if self.world.writer.rooms[root.room_id].members.get(user) != "join" or root.event.thread_root is not None:
            return
        relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root.event.event_id}}
        self._write(self.world.writer.message(root.room_id, user, "reply", **relation))

    @rule(target=batches, room=rooms, user=st.sampled_from(USERS), text=st.sampled_from("abc"))
    def set_state(self, room: RoomId, user: UserId, text: str) -> Any:
        if self.world.writer.rooms[room].members.get(user) != "join":
            return multiple()
        kind = "m.room.name" if text == "c" else "m.room.topic"
        content = {"name": text, "topic": text}
        return self._write(self.world.writer.send(room, user, kind, content, state_key=""))

    @rule(
        target=batches,
        room=rooms,
        sender=st.integers(0, 2),
        user=st.sampled_from(USERS),
        what=st.sampled_from(["topic", "name", "ban", "leave", "invite", "join", "closed", "levels", "message"]),
        back=st.integers(1, 8),
        is_old=st.booleans(),
        hint=st.sampled_from(["heard", "heard", "lost"]),
    )
    def hear_from_a_branch(
        self, room: RoomId, sender: int, user: UserId, what: str, back: int, is_old: bool, hint: str
    ) -> Any:
        """What another server saw happen on top of an older event; a resolution follows."""
        dag = self._do(self.world.writer.dag(room))
        prev_event = list(dag.events)[max(-1 - back, -len(dag.events))]
        joined = dag.joined(prev_event)
        if not joined:
            return multiple()
        author = joined[0] if what in ("ban", "closed", "levels") else joined[sender % len(joined)]
        kind, content, state_key = branch_event(what, joined[0], user)
        author = user if what in ("join", "leave") else author
        at_ms = 1 if is_old else None
        writing = self.world.writer.fork(dag, prev_event, author, kind, content, state_key=state_key, at_ms=at_ms)
        return self._write(writing, hint)

    @rule(
        target=batches,
        room=rooms,
        number=st.integers(0, 9),
        what=st.sampled_from(["ban", "closed", "levels"]),
        hint=st.sampled_from(["heard", "heard", "lost"]),
    )
    def hear_late_of_what_forbids(self, room: RoomId, number: int, what: str, hint: str) -> Any:
        """A branch without an event of the state has something that forbids it: the resolution takes it away."""
        dag = self._do(self.world.writer.dag(room))
        undone = [event for event in dag.events.values() if event.state_key is not None and event.prev_events][4:]
        if not undone:
            return multiple()
        event = undone[-1 - number % len(undone)]
        prev_event = event.prev_events[0]
        joined = dag.joined(prev_event)
        if not joined or joined[0] == event.sender:
            return multiple()
        kind, content, state_key = branch_event(what, joined[0], event.sender)
        writing = self.world.writer.fork(dag, prev_event, joined[0], kind, content, state_key=state_key)
        return self._write(writing, hint)

    @rule(target=batches, message=consumes(messages))
    def redact(self, message: LogRecord) -> Any:
        return self._write(self.world.writer.redact(message.room_id, message.event.sender, message))

    @rule(message=messages, user=st.sampled_from(USERS), thread=st.sampled_from(["", "main"]))
    def read(self, message: LogRecord, user: UserId, thread: str) -> None:
        if self.world.writer.rooms[message.room_id].members.get(user) == "join":
            self._do(self.world.read(message.room_id, user, message.event.event_id, thread=thread))

    @rule(room=rooms, user=st.sampled_from(USERS))
    def forget(self, room: RoomId, user: UserId) -> None:
        self._do(self.world.change(lambda tx: user_rooms.forget(tx, user, room)))

    @rule(batch=batches)
    def repeat_a_hint(self, batch: PartitionBatch) -> None:
        self._do(self.world.fanout.publish_batches([batch], ()))

    @rule()
    def project_what_is_late(self) -> None:
        self._do(self._project())

    @rule(number=st.integers(0, 8), service=st.integers(0, 1))
    def sync(self, number: int, service: int) -> None:
        self._do(self._sync(self.clients[number], service))

    @rule(service=st.integers(0, 1))
    def compare_heads(self, service: int) -> None:
        self._do(self.world.services[service].instance.compare())

    async def _sync(self, client: ModelClient, service: int) -> bool:
        """Sync once; whether anything was new."""
        http = SyncClient(self.world.https[service], client.user_id, f"D{self.clients.index(client)}")
        http.since = client.since
        answer = await http.sync(**client.query)
        client.apply(answer, self.positions)
        return "rooms" in answer

    async def _compare(self) -> None:
        await self._project()
        for service in self.world.services:
            await service.instance.compare()
            await service.instance.feed.repair(list(service.instance.feed.heads))
        current: dict[str, set[tuple[str, str]]] = {room_id: set() for room_id in self.world.writer.rooms}
        for room_id, event_type, state_key in await self.database.fetch(_CURRENT_KEYS):
            current[room_id].add((event_type, state_key))
        for number, client in enumerate(self.clients):
            for turn in range(10):
                if not await self._sync(client, (number + turn) % 2) and turn:
                    break
            other = client.fresh()
            http = SyncClient(self.world.https[number % 2], client.user_id, f"D{number}")
            other.apply(await http.sync(**client.query), self.positions)
            assert client.knowledge(current) == other.knowledge(current), client.query

    def _publish(self, batch: PartitionBatch, hint: str = "heard") -> PartitionBatch:
        for record in batch.records:
            if hasattr(record.body, "client") and hasattr(record.body, "sender"):
                self.positions.setdefault(record.room_id, {})[EventId(record.event.event_id)] = record.position
        if hint != "heard":
            self.unprojected.append(batch)
        if hint != "lost":
            self._do(self.world.publish(batch, project=hint == "heard"))
        return batch

    async def _project(self) -> None:
        late, self.unprojected = self.unprojected, []
        async with self.database.transaction() as tx:
            heads = await user_rooms.apply_changes(tx, changes_of(late))
        await self.world.wake(heads)

    def _write(self, work: Coroutine[Any, Any, PartitionBatch], hint: str = "heard") -> Any:
        """Publish what is written; nothing for a bundle if it was refused or changed nothing."""
        try:
            batch = self._do(work)
        except WriteRefused:
            return multiple()
        return self._publish(batch, hint) if batch.records else multiple()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return type(self).runner.run(work)


class ForkedSyncLaw(SyncLaw):
    """One room with everybody in it, and little else than branches."""

    rename_oneself = reply_in_thread = redact = read = forget = repeat_a_hint = compare_heads = None

    @initialize(target=SyncLaw.rooms)
    def begin(self) -> RoomId:
        self._do(self._open())
        room = self.create(USERS[0], named=False)
        for user in USERS[1:]:
            self._write(self.world.writer.member(room, user, "join"))
        return room


def run_law(law: type[SyncLaw], postgres: EmbeddedPostgres, *, examples: int, steps: int) -> None:
    """Check a law on so many histories, each on a database of its own."""
    numbers = iter(range(1_000_000))

    async def new_database() -> str:
        name = f"{law.__name__.lower()}_{next(numbers)}"
        connection = await Database.connect(postgres.dsn("postgres"))
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template_tessera")
        await connection.close()
        return postgres.dsn(name)

    with asyncio.Runner() as runner:
        law.runner, law.new_database = runner, staticmethod(new_database)
        run_state_machine_as_test(
            law,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("law", [SyncLaw, ForkedSyncLaw])
def test_initial_sync_plus_deltas_equals_a_fresh_initial_sync(postgres: EmbeddedPostgres, law: type[SyncLaw]) -> None:
    run_law(law, postgres, examples=EXAMPLES, steps=STEPS)

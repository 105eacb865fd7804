"""How a gateway learns outcomes when the fan-out brings them, and when it does not."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import pytest

from matrixcore.identifiers import RoomId, UserId
from tessera.commands import Command, Outcome, OutcomeStatus, Unpark
from tessera.fanout import LocalFanout
from tessera.room_commands import RoomCommands


class Bus:
    """Takes commands and keeps them."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.news = asyncio.Event()

    async def send(self, command: Command) -> None:
        self.sent.append(command)
        self.news.set()

    async def open_reader(self) -> None:
        raise AssertionError("nobody reads here")


class Fanout(LocalFanout):
    """A fan-out that can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.healthy = True

    @property
    def is_healthy(self) -> bool:
        return self.healthy

    def go_down(self) -> None:
        self.healthy = False
        for subscription in self.subscriptions:
            if (callback := subscription.subscriber.on_down) is not None:
                callback()


class Outcomes:
    """Rows of two shards: even partitions lie in one, odd ones in the other, which may be stuck."""

    shards: Collection[str] = ("even", "odd")

    def __init__(self) -> None:
        self.rows: dict[bytes, Outcome] = {}
        self.queries: list[tuple[str, int]] = []
        self.stuck = asyncio.Event()
        self.stuck.set()

    def shard_of(self, partition: int) -> str:
        return "odd" if partition % 2 else "even"

    async def find(self, shard: str, command_ids: Sequence[bytes]) -> list[Outcome]:
        self.queries.append((shard, len(command_ids)))
        if shard == "odd":
            await self.stuck.wait()
        return [self.rows[one] for one in command_ids if one in self.rows]

    async def withdraw(self, command: Command) -> Outcome:
        return Outcome(command.id, OutcomeStatus.WITHDRAWN, command.partition)

    async def reopen(self, command: Command) -> bool:
        return False


class World:
    def __init__(self, patience_seconds: float) -> None:
        self.bus, self.fanout, self.outcomes = Bus(), Fanout(), Outcomes()
        self.commands = RoomCommands(self.bus, self.fanout, self.outcomes, reply_patience_seconds=patience_seconds)

    def submit(self, number: int, partition: int) -> "asyncio.Task[Outcome]":
        command = Command(bytes([number]) * 32, RoomId("!r:x"), partition, UserId("@a:x"), 0, Unpark())
        return asyncio.create_task(self.commands.submit(command, timeout_seconds=30))

    def decide(self, number: int, partition: int) -> Outcome:
        outcome = Outcome(bytes([number]) * 32, OutcomeStatus.ACCEPTED, partition, position=number)
        self.outcomes.rows[outcome.command_id] = outcome
        return outcome


@asynccontextmanager
async def running(patience_seconds: float = 3_600) -> AsyncIterator[World]:
    world = World(patience_seconds)
    await world.commands.start()
    polling = asyncio.create_task(world.commands.poll_overdue())
    yield world
    polling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await polling
    await world.commands.stop()


async def test_a_reply_spares_the_query() -> None:
    async with running() as world:
        waiting = world.submit(1, 4)
        await world.bus.news.wait()
        outcome = world.decide(1, 4)
        await world.fanout.publish_batches([], [outcome])
        assert await waiting == outcome
        assert world.outcomes.queries == []


async def test_without_hints_rows_are_looked_up_at_once_in_one_query_a_shard() -> None:
    async with running() as world:
        world.fanout.healthy = False
        decided = [world.decide(number, partition) for number, partition in [(1, 2), (2, 4), (3, 6), (4, 8)]]
        waiting = [world.submit(outcome.position, outcome.partition) for outcome in decided]
        assert await asyncio.gather(*waiting) == decided
        assert [shard for shard, _ in world.outcomes.queries] == ["even"] * len(world.outcomes.queries)
        assert len(world.outcomes.queries) <= 2


async def test_who_waits_when_the_hints_stop_is_looked_up() -> None:
    async with running() as world:
        waiting = world.submit(1, 4)
        await world.bus.news.wait()
        outcome = world.decide(1, 4)
        world.fanout.go_down()
        assert await waiting == outcome


async def test_a_stuck_shard_does_not_hold_up_the_other() -> None:
    async with running() as world:
        world.fanout.healthy = False
        world.outcomes.stuck.clear()
        stuck = world.submit(1, 3)
        outcome = world.decide(2, 4)
        assert await world.submit(2, 4) == outcome
        assert not stuck.done()
        late = world.decide(1, 3)
        world.outcomes.stuck.set()
        assert await stuck == late


async def test_when_replies_get_lost_patience_ends_until_one_comes() -> None:
    async with running(patience_seconds=0.01) as world:
        first = world.decide(1, 4)
        assert await world.submit(1, 4) == first  # looked up: its reply was lost
        world.commands._patience = 3_600
        second = world.decide(2, 4)
        assert await world.submit(2, 4) == second
        queries = len(world.outcomes.queries)
        world.bus.news.clear()
        waiting = world.submit(3, 4)
        await world.bus.news.wait()
        await world.fanout.publish_batches([], [third := world.decide(3, 4)])
        assert await waiting == third
        world.bus.news.clear()
        waiting = world.submit(4, 4)
        await world.bus.news.wait()
        await world.fanout.publish_batches([], [fourth := world.decide(4, 4)])
        assert await waiting == fourth
        assert len(world.outcomes.queries) == queries

"""The sending end of room commands: submit one, learn its one outcome.

A command that gets no answer in time is withdrawn: the id's outcome row is inserted first by
whoever is first, so a 503 means that the change will not happen later, and a retry under the
same id gets what really happened.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from tessera import tracing
from tessera.bus import BusBusy, BusUnavailable, CommandBus
from tessera.commands import Command, Outcome, OutcomeStatus
from tessera.fanout import Fanout, Subscriber, Subscription

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.05  # while the replies' fan-out is not to be trusted
WAITING_LIMIT = 10_000


class CommandUnanswered(Exception):
    """The command will not happen: it was withdrawn, or nobody could be asked. Answer 503 with retry_after_ms."""

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(f"retry after {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class OutcomeStore(Protocol):
    """The outcome rows of the room shards (tessera.storage.outcomes)."""

    @property
    def shards(self) -> Collection[str]:
        """The names of all shards."""

    def shard_of(self, partition: int) -> str:
        """The shard in which a partition lies."""

    async def find(self, shard: str, command_ids: Sequence[bytes]) -> list[Outcome]:
        """The outcomes of these that are decided in the shard, in any order."""

    async def withdraw(self, command: Command) -> Outcome:
        """Insert 'withdrawn' unless an outcome is there; answer the row that then is."""

    async def reopen(self, command: Command) -> bool:
        """Make place for another try of a withdrawn command; False if it is not withdrawn."""


class RoomCommands:
    """Submits commands and hands each waiting request its outcome.

    Outcomes come over the fan-out; as that may lose them, the row is looked up after
    `reply_patience_seconds`, and then in one query a shard for all waiters each 50 ms. While it is known that the
    fan-out brings nothing, patience is of no use, and the looking up begins at once.
    """

    def __init__(
        self, bus: CommandBus, fanout: Fanout, outcomes: OutcomeStore, *, reply_patience_seconds: float = 1.0
    ) -> None:
        self._bus = bus
        self._fanout = fanout
        self._outcomes = outcomes
        self._patience = reply_patience_seconds
        self._waiting: dict[bytes, asyncio.Future[Outcome]] = {}
        self._commands: dict[bytes, Command] = {}
        self._overdue: dict[bytes, Command] = {}
        self._replies_come = True  # the last outcome came over the fan-out
        self._subscription: Subscription | None = None
        self._overdue_event = asyncio.Event()

    async def start(self) -> None:
        """Listen for outcomes; before the first submit."""
        self._subscription = await self._fanout.subscribe(
            Subscriber(on_outcomes=self._on_replies, on_down=self._doubt_all, on_reset=self._doubt_all)
        )

    async def stop(self) -> None:
        """Stop listening; requests still waiting run into their deadlines."""
        if self._subscription is not None:
            await self._subscription.close()

    async def submit(self, command: Command, *, timeout_seconds: float) -> Outcome:
        """Hand a command to its room's writer and wait for its outcome.

        The id may have been used before (a client's transaction ID): what was decided then is the
        answer, unless it was withdrawn, in which case the command gets another try.

        Raises:
            CommandUnanswered: it did not happen and will not.
        """
        if not tracing.is_on():
            return await self._submit(command, timeout_seconds)
        with tracing.submitting() as traceparent:
            return await self._submit(replace(command, traceparent=traceparent), timeout_seconds)

    async def _submit(self, command: Command, timeout_seconds: float) -> Outcome:
        if (waiting := self._waiting.get(command.id)) is not None:
            return await self._await_twin(waiting, timeout_seconds)
        if len(self._waiting) >= WAITING_LIMIT:
            raise CommandUnanswered(1_000)
        outcome = await self._try(command, timeout_seconds)
        # An earlier request under this id gave up, and its caller was told that nothing happened.
        if outcome.status is OutcomeStatus.WITHDRAWN and await self._outcomes.reopen(command):
            outcome = await self._try(command, timeout_seconds)
        return self._decided(outcome)

    async def _try(self, command: Command, seconds: float) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._subscription is not None:
            command = replace(command, reply_to=self._subscription.reply_address)
        self._waiting[command.id] = future
        self._commands[command.id] = command
        try:
            return await self._send_and_wait(command, future, seconds)
        finally:
            self._waiting.pop(command.id, None)
            self._commands.pop(command.id, None)
            self._overdue.pop(command.id, None)
            if not future.done():
                future.cancel()

    async def poll_overdue(self) -> None:
        """Run for ever: look up the rows of commands whose replies are late, one query a shard."""
        async with asyncio.TaskGroup() as tasks:
            for shard in self._outcomes.shards:
                tasks.create_task(self._poll(shard))

    async def _poll(self, shard: str) -> None:
        """A shard that does not answer holds up nobody but its own waiters, who have deadlines of their own."""
        while True:
            await self._overdue_event.wait()
            overdue = [one.id for one in self._overdue.values() if self._outcomes.shard_of(one.partition) == shard]
            if overdue:
                try:
                    found = await self._outcomes.find(shard, overdue)
                except Exception as error:
                    log.warning("outcomes not readable", shard=shard, error=repr(error))
                else:
                    self._take(found)
                    self._replies_come = self._replies_come and not found
            if not self._overdue:
                self._overdue_event.clear()
            await asyncio.sleep(POLL_SECONDS)

    async def _send_and_wait(self, command: Command, future: asyncio.Future[Outcome], seconds: float) -> Outcome:
        loop = asyncio.get_running_loop()
        patience = self._patience if self._replies_come and self._fanout.is_healthy else POLL_SECONDS
        overdue = loop.call_later(min(patience, seconds), self._mark_overdue, command)
        try:
            async with asyncio.timeout(seconds):
                await self._bus.send(command)
                return await future
        except BusBusy as busy:
            raise CommandUnanswered(busy.retry_after_ms) from busy
        except (TimeoutError, BusUnavailable):
            return self._decided(await self._outcomes.withdraw(command))
        finally:
            overdue.cancel()

    async def _await_twin(self, waiting: asyncio.Future[Outcome], seconds: float) -> Outcome:
        try:
            async with asyncio.timeout(seconds):
                return self._decided(await asyncio.shield(waiting))
        except (TimeoutError, asyncio.CancelledError):
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise CommandUnanswered(1_000) from None

    def _mark_overdue(self, command: Command) -> None:
        if command.id in self._waiting:
            self._overdue[command.id] = command
            self._overdue_event.set()

    def _doubt_all(self) -> None:
        """Replies were lost, or will be."""
        for command in self._commands.values():
            self._mark_overdue(command)

    def _on_replies(self, outcomes: Sequence[Outcome]) -> None:
        self._replies_come = True
        self._take(outcomes)

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            future = self._waiting.get(outcome.command_id)
            if future is not None and not future.done():
                future.set_result(outcome)

    @staticmethod
    def _decided(outcome: Outcome) -> Outcome:
        if outcome.status is OutcomeStatus.WITHDRAWN:
            raise CommandUnanswered(1_000)
        return outcome

"""Commands that break the writer: how often they did, and the dead letters that they become.

Attempts of a command that may have ended a whole process are counted in PostgreSQL before they
are made; all others in memory.

Spec: none; DESIGN.md section 3.
"""

from collections.abc import Iterable, Sequence

import structlog

from services.rooms import metrics
from services.rooms.batch_builder import Building, refuse
from services.rooms.parted_commands import PartedCommands
from services.rooms.room_work import Refused
from tessera.commands import Command, Outcome, encode_command
from tessera.storage import dead_letters
from tessera.storage.database import Database
from tessera.storage.writer_batch import WriterBatch

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3  # of a command that breaks the writer


class BrokenCommands:
    """The attempts at commands that are not decided yet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._attempts: dict[bytes, int] = {}
        self._counted: set[bytes] = set()  # whose attempts are counted in PostgreSQL
        self.parts = PartedCommands()

    def is_dead(self, command: Command) -> bool:
        """Whether the command is to be buried instead of tried."""
        return self._attempts.get(command.id, 0) >= MAX_ATTEMPTS

    def has_parts(self, command: Command) -> bool:
        """Whether a command that is dead can be taken apart instead."""
        return len(self.parts.rows_of(command)) > 1

    def take_apart(self, command: Command) -> tuple[Command, Command]:
        """Two commands in place of one that is dead; once they are decided, it is as good as done."""
        del self._attempts[command.id]
        log.warning("command taken apart", room_id=command.room_id, rows=len(self.parts.rows_of(command)))
        parts = self.parts.halve(command)
        # As often as the whole was tried, a part need not be.
        self._attempts.update((part.id, MAX_ATTEMPTS - 1) for part in parts)
        return parts

    def note(self, command: Command) -> None:
        """The command raised, and nothing was written."""
        metrics.RETRIES.labels("failed").inc()
        self._attempts[command.id] = self._attempts.get(command.id, 0) + 1

    def give_up(self, command: Command) -> bool:
        """PostgreSQL does not take this command even alone: bury it, then without its letter; False if it was tried.

        A letter may be just what PostgreSQL does not take.
        """
        attempts = max(self._attempts.get(command.id, 0) + 1, MAX_ATTEMPTS)
        self._attempts[command.id] = attempts
        if attempts > MAX_ATTEMPTS + 1:
            del self._attempts[command.id]
            return False
        return True

    async def count_before(self, command: Command) -> None:
        """Count an attempt before it is made, as it may end this process too.

        Raises:
            DatabaseUnavailable, OSError, TimeoutError: it must not be made.
        """
        async with self._database.reading() as tx:
            attempts = await dead_letters.count_attempt(tx, command.partition, command.id)
        self._counted.add(command.id)
        if attempts > MAX_ATTEMPTS:
            self._attempts[command.id] = MAX_ATTEMPTS

    def bury(self, building: Building, command: Command) -> None:
        """The command becomes a dead letter: kept, replayable, in nobody's way; one of invalid text is refused."""
        if _letter_of(command) is None:
            refusal = Refused(400, "M_BAD_JSON", "Text must be valid Unicode without NUL")
            building.outcomes.append(refuse(building, command, refusal))
            return
        metrics.DEAD_LETTERS.inc()
        log.error("dead letter", room_id=command.room_id, command_id=command.id.hex())
        refusal = Refused(500, "M_UNKNOWN", "The server could not do this; it has been noted")
        building.outcomes.append(refuse(building, command, refusal))

    def write(self, batch: WriterBatch, commands: Sequence[Command]) -> None:
        """Add the letters, and forget what was counted of the commands that this batch decides."""
        for command in commands:
            if self._attempts.get(command.id, 0) == MAX_ATTEMPTS and (text := _letter_of(command)) is not None:
                batch.rows["dead_letters"].append((command.partition, command.id, command.room_id, text, "raised"))
                rows = [(command.partition, inbox_id) for inbox_id in self.parts.rows_of(command)]
                batch.add("inbox_dead", rows)
                batch.add("missing_dead", rows)
        if self._counted:
            counted = [command for command in commands if command.id in self._counted]
            batch.add("attempts_gone", ((command.partition, command.id) for command in counted))

    def forget(self) -> None:
        """All that was to be decided is, or is somebody else's to decide, who counts anew."""
        self._attempts.clear()
        self._counted.clear()
        self.parts.clear()

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """These commands are decided."""
        for outcome in outcomes:
            self._attempts.pop(outcome.command_id, None)
            self._counted.discard(outcome.command_id)
            self.parts.settle(outcome)


def _letter_of(command: Command) -> bytes | None:
    """A command as it is kept; None if it has text that neither PostgreSQL nor JSON can hold."""
    try:
        text = encode_command(command)
    except (TypeError, ValueError):  # a lone surrogate
        return None
    return None if b"\\u0000" in text else text

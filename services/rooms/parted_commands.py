"""Commands about inbox rows that break the writer, taken apart until the one row that does it stands alone.

A command takes in the rows that it names and those that they set free. When it breaks the writer whatever else is in
its batch, each half of these rows becomes a command of its own, which takes in its rows and sets nothing free. Halves
that go through are done; the row that does not is buried, and the command itself ends as accepted.

Spec: none; DESIGN.md section 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256

from matrixcore.identifiers import EventId
from tessera.commands import Command, Outcome, ReceivePdus, Unpark


@dataclass(slots=True)
class PartedCommands:
    """What is known of the rows of the commands that are being decided."""

    _rows: dict[bytes, dict[int, None]] = field(default_factory=dict)  # command -> rows that it took up, in order
    _whole: dict[bytes, bytes] = field(default_factory=dict)  # part -> the command that it is of
    _stored: dict[bytes, tuple[EventId, ...]] = field(default_factory=dict)  # what the parts of a command stored

    def note_rows(self, command: Command, inbox_ids: Iterable[int]) -> None:
        """The command takes up these rows."""
        self._rows.setdefault(command.id, {}).update(dict.fromkeys(inbox_ids))

    def rows_of(self, command: Command) -> list[int]:
        """The rows that the command names or has taken up."""
        if not isinstance(command.body, ReceivePdus | Unpark):
            return []
        named = command.body.inbox_ids if isinstance(command.body, ReceivePdus) else ()
        return list(dict.fromkeys((*named, *self._rows.get(command.id, ()))))

    def is_part(self, command: Command) -> bool:
        """Whether the command takes in its own rows alone."""
        return command.id in self._whole

    def halve(self, command: Command) -> tuple[Command, Command]:
        """Two commands with half of the rows each."""
        rows = self.rows_of(command)
        middle = len(rows) // 2
        first, second = (self._part(command, tuple(half)) for half in (rows[:middle], rows[middle:]))
        self._stored[command.id] = ()
        return first, second

    def find_stored(self, command: Command) -> tuple[EventId, ...] | None:
        """What the parts of the command stored; None for a command that was not taken apart."""
        return self._stored.get(command.id)

    def settle(self, outcome: Outcome) -> None:
        """A command is decided; what a part has stored counts for the whole."""
        self._rows.pop(outcome.command_id, None)
        self._stored.pop(outcome.command_id, None)
        whole = self._whole.pop(outcome.command_id, None)
        if whole is not None and whole in self._stored:
            self._stored[whole] += outcome.event_ids

    def clear(self) -> None:
        """Nothing is being decided."""
        for known in (self._rows, self._whole, self._stored):
            known.clear()

    def _part(self, command: Command, inbox_ids: tuple[int, ...]) -> Command:
        # The same rows of the same command are the same part, whoever takes it apart again.
        part_id = sha256(command.id + b"".join(row.to_bytes(8, "big") for row in inbox_ids)).digest()
        self._whole[part_id] = command.id
        return replace(command, id=part_id, body=ReceivePdus(inbox_ids), reply_to="", traceparent="")

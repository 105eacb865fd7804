"""What is wrong with a configuration, all of it at once."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend.

    Attributes:
        path: where it stands, as `listeners.0.port`; empty for the file as a whole.
        reason: what is wrong and, where known, what would be right. Never the value of a secret.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class ConfigError(Exception):
    """The configuration cannot be used; the process must not start.

    Attributes:
        source: the file's name, or what else was read.
        problems: at least one.
    """

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))

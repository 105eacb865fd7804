"""What the checks of a PDU come to: values with a reason, not exceptions.

Spec: S-S API §Checks performed on receipt of a PDU.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """The event passed."""


@dataclass(frozen=True, slots=True)
class SoftFailed:
    """Allowed where it stands in the DAG, but not by the room's current state: kept, shown to nobody."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not allowed by the authorisation rules: kept as rejected, never part of a state."""

    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """No valid event, or not signed as it must be: forgotten."""

    reason: str


Verdict = Accepted | SoftFailed | Rejected | Dropped

ACCEPTED = Accepted()

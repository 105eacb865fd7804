"""How long a handler may take.

Spec: C-S API §Standard error response (the answer is 504 M_UNKNOWN; DESIGN §11: every wait is bounded).
"""

from collections.abc import Callable
from typing import Any, TypeVar

# A backstop: longer than any wait inside a handler, of which a parked /sync is the longest (120 s).
DEFAULT_DEADLINE_SECONDS = 180.0

_ATTRIBUTE = "deadline_seconds"
_Handler = TypeVar("_Handler", bound=Callable[..., Any])


def deadline(seconds: float | None) -> Callable[[_Handler], _Handler]:
    """Give a handler a deadline of its own, for long-polls; None for one that bounds its own waits, as uploads do."""

    def mark(handler: _Handler) -> _Handler:
        setattr(handler, _ATTRIBUTE, seconds)
        return handler

    return mark


def deadline_of(handler: Callable[..., Any], default_seconds: float) -> float | None:
    """Seconds in which a handler must have made its response."""
    seconds: float | None = getattr(handler, _ATTRIBUTE, default_seconds)
    return seconds

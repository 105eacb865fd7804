"""How long a service that did not take its transaction is left alone.

Spec: Application Service API §Pushing events asks for exponential back-off.
"""

from collections.abc import Callable

FIRST_SECONDS = 1.0
FACTOR = 2.0
LONGEST_SECONDS = 300.0  # a bridge that comes back is in use at once
SPREAD = 0.25


def next_pause(last_seconds: float, fraction: Callable[[], float], asked_seconds: float = 0.0) -> float:
    """The pause after one of `last_seconds` (0: none), scattered so that services are not tried in step.

    Args:
        fraction: a number in [0, 1).
        asked_seconds: what the service itself asked for.
    """
    wanted = FIRST_SECONDS if last_seconds <= 0 else last_seconds * FACTOR
    scattered = min(wanted, LONGEST_SECONDS) * (1 - SPREAD + 2 * SPREAD * fraction())
    return min(max(scattered, asked_seconds), LONGEST_SECONDS * (1 + SPREAD))

"""How long a server that did not take its transaction is left alone.

Spec: none; S-S API §Transactions asks for back-off.
"""

from collections.abc import Callable

FIRST_SECONDS = 2.0
FACTOR = 3.0
LONGEST_SECONDS = 12 * 3600.0
SPREAD = 0.3


def next_pause(last_seconds: float, fraction: Callable[[], float], asked_ms: int | None = None) -> float:
    """The pause after one of `last_seconds` (0: none), scattered so that servers are not tried in step.

    Args:
        fraction: a number in [0, 1).
        asked_ms: what the server itself asked for.
    """
    wanted = FIRST_SECONDS if last_seconds <= 0 else last_seconds * FACTOR
    scattered = min(wanted, LONGEST_SECONDS) * (1 - SPREAD + 2 * SPREAD * fraction())
    return min(max(scattered, (asked_ms or 0) / 1000), LONGEST_SECONDS * (1 + SPREAD))

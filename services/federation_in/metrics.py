"""What taking in from other servers measures. No label names a server, a user or a room.

What became of the PDUs in their rooms the writers count (`services.rooms.metrics`, RECEIVED).
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from prometheus_client import Counter, Histogram

from tessera.http.errors import MatrixError

P = ParamSpec("P")
R = TypeVar("R")

TRANSACTIONS = Counter("tessera_federation_in_transactions", "Transactions by what came of them", ["outcome"])
for _outcome in ("taken", "repeated", "refused"):
    TRANSACTIONS.labels(_outcome)
RECEIVE_SECONDS = Histogram(
    "tessera_federation_in_receive_seconds",
    "From a transaction's body to its answer, which comes when it is stored",
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
)
PDUS = Counter(
    "tessera_federation_in_pdus", "PDUs of transactions: stored, wrong by themselves, of rooms without us", ["outcome"]
)
for _outcome in ("stored", "dropped", "unknown"):
    PDUS.labels(_outcome)
EDUS = Counter("tessera_federation_in_edus", "EDUs of transactions", ["type"])
EDU_TYPES = frozenset(
    ("m.typing", "m.receipt", "m.presence", "m.direct_to_device", "m.device_list_update", "m.signing_key_update")
)
for _type in (*sorted(EDU_TYPES), "other"):
    EDUS.labels(_type)
HANDSHAKES = Counter(
    "tessera_federation_in_handshakes", "Events by which others' users enter and leave", ["kind", "outcome"]
)
for _kind in ("join", "leave", "knock", "invite", "third_party_invite"):
    for _outcome in ("taken", "refused", "failed"):
        HANDSHAKES.labels(_kind, _outcome)
POLICY_QUESTIONS = Counter(
    "tessera_federation_in_policy_questions", "PDUs that policy servers were asked about", ["outcome"]
)
for _outcome in ("signed", "refused", "unanswered"):
    POLICY_QUESTIONS.labels(_outcome)


def counted(kind: str) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """A handshake's part that takes the event, counted by how it ends."""

    def wrap(take: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @wraps(take)
        async def taking(*args: P.args, **kwargs: P.kwargs) -> R:
            outcome = "failed"
            try:
                result = await take(*args, **kwargs)
                outcome = "taken"
            except MatrixError as error:
                outcome = "refused" if error.status < 500 else "failed"
                raise
            finally:
                HANDSHAKES.labels(kind, outcome).inc()
            return result

        return taking

    return wrap


def count_edu(edu_type: str) -> None:
    """One EDU; types that are not known are one."""
    EDUS.labels(edu_type if edu_type in EDU_TYPES else "other").inc()

"""Answers sliding sync requests, and parks those without news until there are any.

Spec: MSC4186 §Connections, `timeout`.
"""

import hashlib
from collections.abc import Callable

import orjson

from services.sync import metrics
from services.sync.lazy_members import LazyMemory
from services.sync.polls import Poll
from services.sync.sliding.answering import SlidingAnswer, SlidingAnswers
from services.sync.sliding.connections import Connection, Connections
from services.sync.sliding.request import SlidingRequest
from services.sync.sliding.sent_rooms import NOTHING_SENT, Told
from services.sync.sync_instance import SyncInstance
from services.sync.user_states import UserState
from tessera.storage.sliding_connections import ConnectionKey


class SlidingSync:
    """One process's share of sliding sync.

    Args:
        new_name: makes up names of connections and their generations, 32 letters and digits at most.
    """

    def __init__(self, instance: SyncInstance, new_name: Callable[[], str]) -> None:
        self.connections = Connections(instance.snapshots.accounts, new_name)
        self._instance = instance
        self._clock = instance.snapshots.clock
        self._answers = SlidingAnswers(instance)
        self._memory = LazyMemory()

    async def answer(self, request: SlidingRequest) -> bytes:
        """The answer to a request, after news or its time-out.

        Raises:
            UnknownPos, SessionEnded, LimitExceeded, DatabaseUnavailable
        """
        state = await self._instance.users.get(request.user_id)
        key = ConnectionKey(request.user_id, request.device_id, request.conn_id)
        if request.pos:
            connection, told = await self.connections.find(key, request.pos)
        else:
            connection, told = self.connections.begin(key), Told(None, NOTHING_SENT)
        if (wish := request.extensions.to_device) is not None and wish.since:
            if wish.since > state.log_head:  # another process told it more than this one has heard of
                state.heard_head = max(state.heard_head, wish.since)
                await self._instance.users.catch_up(state)
            await self._instance.confirm_messages(state, request.device_id, wish.since)
        with self._instance.polling(state, request.device_id) as poll:
            return await self._when_due(state, poll, request, connection, told)

    async def _when_due(
        self, state: UserState, poll: Poll, request: SlidingRequest, connection: Connection, told: Told
    ) -> bytes:
        seen = self._memory.at(request.user_id, request.device_id, request.pos)
        deadline = self._clock.monotonic() + request.timeout_ms / 1000
        is_over = False
        if self._is_quiet(state, request, connection, told):
            is_over = not await self._instance.park(poll, request.timeout_ms / 1000)
        while True:
            poll.is_woken = False
            woken_by, poll.tails = poll.tails, set()
            answer = await self._answers.compose(state, request, told, seen)
            remaining = deadline - self._clock.monotonic()
            if not answer.is_empty or told.token is None or is_over or remaining <= 0 or self._instance.is_stopping:
                encoded = await self._encode(request, connection, told, answer)
                if told.token is not None:
                    delivered = [tail for tail in woken_by if tail.room_id in answer.body["rooms"]]
                    self._instance.note_delivery(delivered, told.token)
                return encoded
            is_over = not await self._instance.park(poll, remaining)

    def _is_quiet(self, state: UserState, request: SlidingRequest, connection: Connection, told: Told) -> bool:
        """Whether a request can wait unseen: it asks what the one before asked, and nothing has happened since."""
        return (
            request.timeout_ms > 0
            and told.token is not None
            and connection.answered == (_digest(request.raw), request.pos)
            and not self._instance.is_stopping
            and self._answers.is_quiet(state, told.token)
        )

    async def _encode(
        self, request: SlidingRequest, connection: Connection, told: Told, answer: SlidingAnswer
    ) -> bytes:
        pos = await self.connections.keep(connection, told, answer.sent, answer.token)
        self._memory.keep(request.user_id, request.device_id, pos, answer.seen)
        connection.answered = (_digest(request.raw), pos)
        metrics.SLIDING_ANSWERS.inc()
        body = {"pos": pos, **answer.body}
        if request.txn_id is not None:
            body["txn_id"] = request.txn_id
        return orjson.dumps(body)


def _digest(raw: bytes) -> bytes:
    """By which a body is known again: bodies themselves are too large to be kept for every connection."""
    return hashlib.blake2b(raw, digest_size=16).digest()

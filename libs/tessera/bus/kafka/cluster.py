"""Kafka with the topics as they must be; looked at once, before anything is sent or read.

Spec: none; DESIGN.md section 3 (start-up is refused if topic and database disagree on the count).
"""

import asyncio
from collections.abc import Mapping

import structlog

from tessera.bus.kafka.connection import KafkaConnection, TopicDescription
from tessera.bus.kafka.topics import TopicPlan, TopicsDisagree, check_topics
from tessera.bus.protocol import BusUnavailable
from tessera.clock import Clock

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 0.5

Topics = Mapping[str, TopicDescription]


class Cluster:
    """The connection, and the check that its topics have passed."""

    def __init__(self, connection: KafkaConnection, plan: TopicPlan, clock: Clock) -> None:
        self.connection = connection
        self._plan = plan
        self._clock = clock
        self._topics: Topics | None = None
        self._checking: asyncio.Task[Topics] | None = None
        self._failed_at: float | None = None

    async def check(self) -> None:
        """Look at the topics, or leave it for later if Kafka does not answer.

        Raises:
            TopicsDisagree: they are not what the configuration says.
        """
        try:
            self._topics = await check_topics(self.connection, self._plan)
        except BusUnavailable as error:
            log.warning("Kafka is away; topics are checked when it is back", error=str(error))

    async def require_topics(self) -> Topics:
        """The topics, once they have been found right.

        Raises:
            BusUnavailable: they are wrong, or Kafka has not answered since the start.
        """
        if self._topics is not None:
            return self._topics
        if self._failed_at is not None and self._clock.monotonic() - self._failed_at < _RETRY_SECONDS:
            raise BusUnavailable("Kafka did not answer a moment ago")
        if self._checking is None:
            self._checking = asyncio.create_task(check_topics(self.connection, self._plan))
            self._checking.add_done_callback(self._checked)
        try:
            # One check for all who wait; who gives up does not take it from the others.
            return await asyncio.shield(self._checking)
        except TopicsDisagree as error:
            raise BusUnavailable(str(error)) from error

    async def await_topics(self) -> Topics:
        """The topics, as soon as they are there and right."""
        while True:
            try:
                return await self.require_topics()
            except BusUnavailable as error:
                log.warning("waiting for Kafka", error=str(error))
                await self._clock.sleep(2 * _RETRY_SECONDS)

    async def close(self) -> None:
        """End a check that is under way."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait([self._checking])

    def _checked(self, task: asyncio.Task[Topics]) -> None:
        self._checking = None
        if task.cancelled():
            return
        if task.exception() is None:
            self._topics = task.result()
        else:
            self._failed_at = self._clock.monotonic()

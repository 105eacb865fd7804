"""Fewer lines from aiokafka: while brokers are away it says the same many times a second, for each client."""

import logging

SECONDS = 30.0
MESSAGES = 200  # remembered; aiokafka has fewer
_LOGGERS = (
    "aiokafka",  # its client
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.producer.sender",
)


class Repetitions(logging.Filter):
    """Lets each message of a logger through once in a while, and says how often it was kept back."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written; `record.msg` is the message without its arguments, so there are few."""
        message = str(record.msg)
        if record.created - self._last.get(message, float("-inf")) < SECONDS:
            self._kept_back[message] = self._kept_back.get(message, 0) + 1
            return False
        if len(self._last) >= MESSAGES:
            self._last.clear()
            self._kept_back.clear()
        self._last[message] = record.created
        kept_back = self._kept_back.pop(message, 0)
        if kept_back:
            record.msg = f"{message} (and {kept_back} times more before)"
        return True


def quiet_aiokafka() -> None:
    """Keep repetitions back from now on; more than once is once."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, Repetitions) for one in logger.filters):
            logger.addFilter(Repetitions())

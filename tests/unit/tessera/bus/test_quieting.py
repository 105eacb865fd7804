"""Fewer lines from aiokafka."""

import logging

from tessera.bus.kafka.quieting import SECONDS, Repetitions, quiet_aiokafka


def line(message: str, seconds: float, *arguments: object) -> logging.LogRecord:
    record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, message, arguments, None)
    record.created = seconds
    return record


def test_a_message_comes_once_in_a_while_and_tells_of_the_others() -> None:
    repetitions = Repetitions()
    assert repetitions.filter(line("cannot connect to %s", 0, "one"))
    assert not repetitions.filter(line("cannot connect to %s", 1, "two"))
    assert not repetitions.filter(line("cannot connect to %s", SECONDS - 1, "one"))
    assert repetitions.filter(line("another", 2))
    late = line("cannot connect to %s", SECONDS, "one")
    assert repetitions.filter(late)
    assert late.getMessage() == "cannot connect to one (and 2 times more before)"


def test_loggers_are_quieted_once() -> None:
    quiet_aiokafka()
    quiet_aiokafka()
    filters = logging.getLogger("aiokafka").filters
    assert [type(one) for one in filters].count(Repetitions) == 1

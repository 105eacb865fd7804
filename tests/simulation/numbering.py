"""Objects that hash by their number instead of their address, so that a set of them has one order in every run."""

import itertools
from typing import Any

_numbers = itertools.count()
_known: dict[int, tuple[int, Any]] = {}  # the object is kept with its number: its address must not be another's


def number_objects(*classes: type) -> None:
    """Number the objects of these classes in the order in which they are first hashed."""
    for one in classes:
        one.__hash__ = _number_of  # type: ignore[assignment,method-assign]  # all are equal to themselves alone


def next_number() -> int:
    """For an object that keeps its number itself."""
    return next(_numbers)


def begin_numbers() -> None:
    """Let go of what a run made, and begin anew."""
    global _numbers
    _numbers = itertools.count()
    _known.clear()


def _number_of(thing: object) -> int:
    known = _known.get(id(thing))
    if known is None:
        known = _known[id(thing)] = (next_number(), thing)
    return known[0]

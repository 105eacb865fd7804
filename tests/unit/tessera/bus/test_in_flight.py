"""The bound on what is under way."""

import pytest

from tessera.bus import BusBusy
from tessera.bus.kafka.producing import InFlight


def test_records_and_bytes_are_bounded() -> None:
    in_flight = InFlight("unit.test", 3, 100)
    with in_flight.places(2, 50), in_flight.places(1, 10), pytest.raises(BusBusy), in_flight.places(1, 1):
        pass
    with in_flight.places(1, 90), pytest.raises(BusBusy), in_flight.places(1, 11):
        pass
    with in_flight.places(1, 90), in_flight.places(1, 10):
        pass


def test_places_come_back_after_a_failure() -> None:
    in_flight = InFlight("unit.test", 1, 100)
    with pytest.raises(RuntimeError), in_flight.places(1, 1):
        raise RuntimeError
    with in_flight.places(1, 1):
        pass


def test_one_that_is_larger_than_the_bound_goes_alone() -> None:
    in_flight = InFlight("unit.test", 3, 100)
    with in_flight.places(5, 1_000), pytest.raises(BusBusy), in_flight.places(1, 1):
        pass

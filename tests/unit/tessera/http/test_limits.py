import pytest

from tessera.clock import FakeClock
from tessera.http.errors import LimitExceeded
from tessera.http.limits import LocalRateLimits, Rate, RateLimits


def limits_of(clock: FakeClock, **rates: Rate) -> LocalRateLimits:
    return LocalRateLimits(clock, rates, max_keys=10)


def test_burst_then_rate() -> None:
    clock = FakeClock()
    limits: RateLimits = limits_of(clock, rc_message=Rate(0.5, 3))
    for _ in range(3):
        limits.check("rc_message", "@a:x")
    with pytest.raises(LimitExceeded) as caught:
        limits.check("rc_message", "@a:x")
    assert caught.value.retry_after_ms == 2000
    limits.check("rc_message", "@b:x")
    clock.shift(2)
    limits.check("rc_message", "@a:x")
    with pytest.raises(LimitExceeded):
        limits.check("rc_message", "@a:x")


def test_unnamed_limits_do_not_limit() -> None:
    limits = limits_of(FakeClock())
    for _ in range(100):
        limits.check("rc_unknown", "k")
    assert len(limits) == 0


def test_failures_are_noted_after_the_fact() -> None:
    clock = FakeClock()
    limits = limits_of(clock, failed=Rate(1, 2))
    for _ in range(5):
        limits.require_capacity("failed", "k")
    limits.note("failed", "k")
    limits.require_capacity("failed", "k")
    for _ in range(50):
        limits.note("failed", "k")
    with pytest.raises(LimitExceeded) as caught:
        limits.require_capacity("failed", "k")
    assert caught.value.retry_after_ms <= 2000


def test_more_than_a_burst_at_once_passes_only_a_full_bucket() -> None:
    clock = FakeClock()
    limits = limits_of(clock, invites=Rate(1, 2))
    limits.check("invites", "k", count=5)
    with pytest.raises(LimitExceeded):
        limits.check("invites", "k")
    clock.shift(5)
    limits.check("invites", "k", count=5)


def test_memory_is_bounded() -> None:
    limits = limits_of(FakeClock(), r=Rate(1, 1))
    for number in range(1000):
        limits.check("r", str(number))
    assert len(limits) == 10


def test_nothing_per_second_is_nothing() -> None:
    limits = limits_of(FakeClock(), r=Rate(0, 5))
    with pytest.raises(LimitExceeded):
        limits.check("r", "k")


def test_what_others_noted_is_learned_but_nothing_is_forgotten() -> None:
    limits = LocalRateLimits(FakeClock(), {"rc_message": Rate(1, 3)})
    limits.learn("rc_message", "@a:x", 2.5)
    with pytest.raises(LimitExceeded) as refused:
        limits.check("rc_message", "@a:x")
    assert refused.value.retry_after_ms == 500
    limits.learn("rc_message", "@a:x", 1)
    with pytest.raises(LimitExceeded):
        limits.check("rc_message", "@a:x")

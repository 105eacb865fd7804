"""Rate limits of two processes that share a Redis, or not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tessera.clock import FakeClock, SystemClock
from tessera.fanout.redis import RedisRateLimits, open_fanout, open_rate_limits
from tessera.http.errors import LimitExceeded
from tessera.http.limits import Rate
from tessera.ids import IdSource
from tests.fixtures.valkey import ValkeyProcess

RATES = {"rc_message": Rate(0.5, 4), "rc_login.failed_attempts": Rate(0.1, 2), "never": Rate(0, 1)}


@pytest.fixture
async def processes(own_valkey: ValkeyProcess, key_prefix: str) -> AsyncIterator[list[RedisRateLimits]]:
    """Limits of two processes; nothing is told before `share` is called."""
    async with AsyncExitStack() as stack:
        limits = []
        for _ in range(2):
            settings = own_valkey.settings(key_prefix)
            fanout = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
            limits.append(RedisRateLimits(fanout.publisher, fanout.key_prefix, RATES, FakeClock()))
        yield limits


def allowed(limits: RedisRateLimits, key: str = "@alice:test.example") -> int:
    """How many messages go before one is refused."""
    for number in range(20):
        try:
            limits.check("rc_message", key)
        except LimitExceeded:
            return number
    return 20


async def test_one_process_keeps_the_limit_alone(processes: list[RedisRateLimits]) -> None:
    here, _ = processes
    assert allowed(here) == 4
    await here.share()
    assert allowed(here) == 0
    assert allowed(here, "@bob:test.example") == 4


async def test_what_one_noted_the_other_learns(processes: list[RedisRateLimits]) -> None:
    here, there = processes
    assert allowed(here) == 4
    await here.share()
    there.check("rc_message", "@alice:test.example")  # nobody has told it yet
    await there.share()
    with pytest.raises(LimitExceeded) as refused:
        there.check("rc_message", "@alice:test.example")
    # Five actions at one every two seconds; there is room for the next when four of them are left.
    assert refused.value.retry_after_ms == pytest.approx(4_000, abs=100)


async def test_failed_logins_count_everywhere(processes: list[RedisRateLimits]) -> None:
    here, there = processes
    for limits in (here, here, there):
        limits.note("rc_login.failed_attempts", "@alice:test.example")
        await limits.share()
    with pytest.raises(LimitExceeded):
        there.require_capacity("rc_login.failed_attempts", "@alice:test.example")


async def test_a_flood_locks_its_victim_out_no_longer_than_the_rate_says(processes: list[RedisRateLimits]) -> None:
    here, there = processes
    for _ in range(100):
        here.note("rc_login.failed_attempts", "@alice:test.example")
        there.note("rc_login.failed_attempts", "@alice:test.example")
    await here.share()
    await there.share()
    with pytest.raises(LimitExceeded) as refused:
        there.require_capacity("rc_login.failed_attempts", "@alice:test.example")
    assert refused.value.retry_after_ms <= 20_000


async def test_what_is_never_allowed_stays_so(processes: list[RedisRateLimits]) -> None:
    here, _ = processes
    with pytest.raises(LimitExceeded):
        here.check("never", "x")
    here.note("never", "x")
    here.check("no such limit", "x")
    await here.share()


async def test_a_restarted_redis_knows_nothing_and_the_limits_hold(
    processes: list[RedisRateLimits], own_valkey: ValkeyProcess
) -> None:
    here, there = processes
    assert allowed(here) == 4
    await here.share()
    own_valkey.command("FLUSHALL")
    own_valkey.command("SCRIPT", "FLUSH")
    here.note("rc_message", "@bob:test.example")
    await here.share()  # the script is sent anew
    assert allowed(here) == 0
    assert allowed(there) == 4


async def test_without_redis_each_process_has_its_own_limits_and_nobody_waits(
    processes: list[RedisRateLimits], own_valkey: ValkeyProcess
) -> None:
    here, there = processes
    own_valkey.kill()
    assert allowed(here) == 4
    await here.share()
    assert allowed(here) == 0
    assert allowed(there) == 4
    await there.share()


async def test_redis_holds_no_names_and_nothing_for_ever(
    processes: list[RedisRateLimits], own_valkey: ValkeyProcess
) -> None:
    here, _ = processes
    allowed(here)
    await here.share()
    assert own_valkey.command("DBSIZE") == "1"
    key = own_valkey.command("EVAL", "return {ok = redis.call('KEYS', '*')[1]}", "0")
    assert "rc_message" in key
    assert "alice" not in key
    left_ms = int(own_valkey.command("PTTL", key))
    assert 0 < left_ms <= 8_000


async def test_sharing_goes_on_in_the_background(own_valkey: ValkeyProcess, key_prefix: str) -> None:
    async with AsyncExitStack() as stack:
        processes = []
        for _ in range(2):
            settings = own_valkey.settings(key_prefix)
            fanout = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
            processes.append(await stack.enter_async_context(open_rate_limits(fanout, RATES, SystemClock())))
        here, there = processes
        assert allowed(here) == 4
        for _ in range(500):
            if own_valkey.command("DBSIZE") != "0":
                break
            await asyncio.sleep(0.01)
        there.check("rc_message", "@alice:test.example")  # of its own four it has used one
        for _ in range(500):
            await asyncio.sleep(0.01)
            try:
                there.require_capacity("rc_message", "@alice:test.example")
            except LimitExceeded:
                return
        pytest.fail("nothing was shared")

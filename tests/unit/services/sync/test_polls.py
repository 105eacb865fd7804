"""Waiting requests end when they are woken, and otherwise near their time-outs, never far after."""

import asyncio

from services.sync.polls import EARLY_SECONDS, STEP_SECONDS, Poll, PollTimers


async def waited(poll: Poll, seconds: float) -> tuple[bool, float]:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    return await poll.wait(seconds), loop.time() - begun


async def test_a_wake_ends_one_wait_and_no_other() -> None:
    timers = PollTimers()
    one, other = Poll("A", timers), Poll("B", timers)
    waiting = [asyncio.create_task(poll.wait(30)) for poll in (one, other)]
    await asyncio.sleep(0)
    one.wake()
    assert await waiting[0]
    assert [poll.is_parked for poll in (one, other)] == [False, True]
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not other.is_parked


async def test_who_was_woken_before_does_not_wait() -> None:
    poll = Poll("A", PollTimers())
    poll.wake()
    assert await poll.wait(30)
    assert not await Poll("A", PollTimers()).wait(0)


async def test_each_wait_ends_at_its_own_time() -> None:
    timers = PollTimers()

    async def later(delay: float, seconds: float) -> float:
        await asyncio.sleep(delay)
        is_woken, took = await waited(Poll("A", timers), seconds)
        assert not is_woken
        return took - seconds

    waits = [(0.0, 0.25), (0.01, 0.25), (0.15, 0.25), (0.0, 0.02), (0.0, 0.15), (0.05, 0.001)]
    async with asyncio.timeout(30):
        over = await asyncio.gather(*(later(*wait) for wait in waits))
    assert all(took >= -STEP_SECONDS - EARLY_SECONDS for took in over)
    assert all(took >= 0 for took, (_, seconds) in zip(over, waits, strict=True) if seconds < STEP_SECONDS)


async def test_one_length_serves_many_waits_one_after_the_other() -> None:
    timers = PollTimers()
    async with asyncio.timeout(30):
        for _ in range(3):
            assert not await Poll("A", timers).wait(0.1)

import asyncio

from tessera.clock import Clock, FakeClock, SystemClock


def test_system_clock_moves_forward() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic()
    assert clock.monotonic() >= before
    assert clock.now_ms() > 1_700_000_000_000


async def test_fake_clock_wakes_sleepers_in_the_order_of_their_deadlines() -> None:
    clock = FakeClock(now_ms=1_000)
    woken: list[tuple[str, int]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woken.append((name, clock.now_ms()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("a", 3))
        group.create_task(sleeper("b", 1, 1.5))
        await clock.advance(2)
        assert woken == [("b", 2_000)]
        await clock.advance(2)
    assert woken == [("b", 2_000), ("b", 3_500), ("a", 4_000)]
    assert clock.now_ms() == 5_000
    assert clock.monotonic() == 4


async def test_fake_clock_survives_a_cancelled_sleeper() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    await clock.advance(2)
    assert task.cancelled()

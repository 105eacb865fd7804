"""Handlers that take too long are ended, and only they."""

import asyncio

import pytest

from tessera.http.deadlines import Deadline
from tessera.http.errors import MatrixError


async def test_work_in_time_is_let_be() -> None:
    async def work() -> str:
        return "made"

    assert await Deadline(60.0).within(work()) == "made"


async def test_each_is_ended_at_its_own_time() -> None:
    deadline = Deadline(0.05)
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def work(delay: float) -> None:
        await asyncio.sleep(delay)
        begun.append(loop.time())
        with pytest.raises(MatrixError) as caught:
            await deadline.within(asyncio.sleep(60))
        assert caught.value.status == 504
        assert loop.time() - begun.pop(0) >= 0.05
        await asyncio.sleep(0)  # no cancellation is left over

    async with asyncio.timeout(30):
        await asyncio.gather(work(0), work(0.01), work(0.02))


async def test_a_cancellation_from_outside_stays_one() -> None:
    task = asyncio.create_task(Deadline(60.0).within(asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_handler_may_clean_up_and_the_error_of_doing_so_wins() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("no clean end")

    with pytest.raises(ValueError, match="no clean end"):
        await Deadline(0.01).within(work())


def test_one_deadline_serves_one_event_loop_after_another() -> None:
    deadline = Deadline(0.01)

    async def overdue() -> None:
        async with asyncio.timeout(30):
            with pytest.raises(MatrixError):
                await deadline.within(asyncio.sleep(60))

    async def in_time() -> None:
        await deadline.within(asyncio.sleep(0))

    asyncio.run(in_time())
    asyncio.run(overdue())

"""What the fan-out makes of a Redis that dies, hangs, cuts its connections, forgets, or is flooded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fanout_listening import ALICE, Listener, batch, outcome

from tessera.clock import SystemClock
from tessera.fanout import UserWake
from tessera.fanout.redis import RedisFanout, RedisUnavailable, messages, metrics, open_fanout, publishing
from tessera.ids import IdSource
from tests.fixtures.valkey import ValkeyProcess


@asynccontextmanager
async def two_ends(server: ValkeyProcess, **changes: object) -> AsyncIterator[tuple[RedisFanout, RedisFanout]]:
    """The end that publishes, the end that listens."""
    settings = server.settings("test:", **changes)
    async with (
        open_fanout(settings, SystemClock(), IdSource()) as here,
        open_fanout(settings, SystemClock(), IdSource()) as there,
    ):
        yield here, there


async def until_up(fanout: RedisFanout, *, up: bool = True) -> None:
    """Wait until the fan-out knows that Redis is there, or that it is not."""
    for _ in range(1_500):
        try:
            await fanout.ping()
        except RedisUnavailable:
            if not up:
                return
        else:
            if up:
                return
        await asyncio.sleep(0.01)
    pytest.fail(f"not {'up' if up else 'down'} in time")


async def hear(listener: Listener, fanout: RedisFanout) -> None:
    """Listen to partition 3 and to Alice."""
    subscription = await listener.subscribe(fanout)
    await subscription.follow_partitions([3])
    await subscription.follow_users([ALICE])


async def test_a_restart_is_told_before_anything_else_comes(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        assert there.is_healthy
        own_valkey.kill()
        await listener.until(lambda: listener.kinds() == ["down"])
        assert not there.is_healthy
        await until_up(here, up=False)
        await here.publish_batches([batch(1, 1)], [])  # into the void
        own_valkey.restart()
        await listener.until(lambda: listener.kinds() == ["down", "reset"])
        await until_up(here)
        await here.publish_batches([batch(2, 2)], [])
        await here.publish_user_wakes([UserWake(ALICE, 9)])
        await listener.until(lambda: len(listener.heard) == 4)
        assert listener.of("batch") == [batch(2, 2)]
        assert listener.of("user_wakes") == [[UserWake(ALICE, 9)]]


async def test_a_cut_connection_is_told(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        for turn in range(3):
            own_valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
            await listener.until(lambda turn=turn: listener.kinds().count("reset") == turn + 1)  # type: ignore[misc]
        await here.publish_batches([batch(1, 1)], [])
        await listener.until(lambda: listener.of("batch") == [batch(1, 1)])
        assert listener.kinds() == ["down", "reset"] * 3 + ["batch"]


async def test_forgetting_everything_ends_no_subscription(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        own_valkey.command("FLUSHALL")
        await here.publish_batches([batch(1, 1)], [])
        await listener.until(lambda: listener.kinds() == ["batch"])


async def test_a_redis_that_hangs_costs_the_writer_nothing(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey, publish_timeout=200) as (here, there):
        listener = Listener()
        await hear(listener, there)
        own_valkey.freeze()
        try:
            loop = asyncio.get_running_loop()
            started = loop.time()
            for number in range(100):
                await here.publish_batches([batch(number, number)], [outcome(b"x")])
            assert loop.time() - started < 0.15  # not one round trip was waited for
            started = loop.time()
            for number in range(100):
                await here.publish_user_wakes([UserWake(ALICE, number)])
            assert loop.time() - started < 1.0  # one time-out for all of them, and then the circuit is open
            await listener.until(lambda: listener.kinds()[-1:] == ["down"])
        finally:
            own_valkey.thaw()
        await listener.until(lambda: listener.kinds()[-1:] == ["reset"])
        await until_up(here)
        await here.publish_user_wakes([UserWake(ALICE, 1_000)])
        await listener.until(lambda: [UserWake(ALICE, 1_000)] in listener.of("user_wakes"))


async def test_following_while_redis_is_away_is_in_force_when_it_is_back(own_valkey: ValkeyProcess) -> None:
    own_valkey.kill()
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        assert listener.heard == []
        own_valkey.restart()
        await listener.until(lambda: listener.kinds() == ["reset"])
        await until_up(here)
        await here.publish_batches([batch(1, 1)], [])
        await listener.until(lambda: listener.kinds() == ["reset", "batch"])


async def test_a_slow_listener_is_cut_off_and_told(own_valkey: ValkeyProcess) -> None:
    own_valkey.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 2mb 1mb 60")
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        # The loop stands still while the server is flooded, so nobody reads what it has for the listener.
        # Small messages: Valkey 9 does not count large ones, of which it keeps references, against the limit.
        for number in range(1, 1_001):
            flood = messages.encode_batch(batch(number, number, size=5_000))
            own_valkey.command("PUBLISH", "test:p:3", flood.decode())
        await listener.until(lambda: "reset" in listener.kinds())
        received = listener.of("batch")
        assert len(received) < 1_000
        assert received == [batch(number, number, size=5_000) for number in range(1, len(received) + 1)]
        assert listener.kinds()[len(received) :] == ["down", "reset"]
        await here.publish_user_wakes([UserWake(ALICE, 7)])
        await listener.until(lambda: bool(listener.of("user_wakes")))


async def test_what_waits_to_be_published_is_bounded(
    own_valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_QUEUED_BYTES", 1 << 20)
    dropped = metrics.DROPPED.labels("overflow")._value
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        before = dropped.get()
        for number in range(1, 101):  # 20 MB, before the publisher has its turn
            await here.publish_batches([batch(number, number, size=200_000)], [])
        assert 90 <= dropped.get() - before < 100
        await until_up(here)
        await here.publish_batches([batch(101, 101)], [])
        await listener.until(lambda: batch(101, 101) in listener.of("batch"))


async def test_a_batch_that_is_too_large_says_only_where_the_partition_is(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        await here.publish_batches([batch(5, 12, size=40_000)], [])
        await listener.until(lambda: bool(listener.of("batch")))
        (heard,) = listener.of("batch")
        assert (heard.partition, heard.last, heard.records) == (3, 12, ())
        assert heard.first > heard.last


async def test_replies_go_to_who_waits_and_to_nobody_else(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey) as (here, there):
        waiting, other = Listener(), Listener()
        address = (await waiting.subscribe(there)).reply_address
        await (await other.subscribe(there)).follow_partitions([3])
        outcomes = [outcome(b"%d" % number) for number in range(3)]
        await here.publish_batches([], outcomes, {one.command_id: [address] for one in outcomes[:2]})
        await here.publish_batches([batch(1, 1)], [])
        await other.until(lambda: other.kinds() == ["batch"])
        await waiting.until(lambda: bool(waiting.heard))
        assert waiting.of("outcomes") == [outcomes[:2]]


async def test_nonsense_on_a_channel_harms_nobody(own_valkey: ValkeyProcess) -> None:
    async with two_ends(own_valkey) as (here, there):
        listener = Listener()
        await hear(listener, there)
        for channel in ("test:p:3", "test:typing", "test:presence", "test:devices", "test:sessions", "test:u:" + ALICE):
            for nonsense in ("", "{}", "[1]", "[99,1,3,1,1,[]]\n", "\x00", '[1,1,3,1,1,[["!r:x",1,1,5]]]\n{}'):
                own_valkey.command("PUBLISH", channel, nonsense)
        await here.publish_batches([batch(1, 1)], [])
        await listener.until(lambda: listener.of("batch") == [batch(1, 1)])
        assert there.is_healthy

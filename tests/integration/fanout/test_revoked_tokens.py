"""A revoked token works nowhere after five seconds, with Redis at once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from matrixcore.identifiers import UserId
from services.gateway.sessions import TokenLifetimes, Wakes, end_devices, start_session
from tessera.clock import FakeClock, SystemClock
from tessera.fanout.redis import RedisFanout, RedisUnavailable, open_fanout
from tessera.http.errors import UnknownToken
from tessera.ids import IdSource
from tessera.last_seen import LastSeenRecorder
from tessera.storage import users
from tessera.storage.database import Database
from tessera.token_authenticator import TokenAuthenticator
from tests.fixtures.valkey import ValkeyProcess

ALICE = UserId("@alice:test.example")


@dataclass(frozen=True, slots=True)
class Process:
    """What a gateway or a sync instance has to know whose a token is."""

    fanout: RedisFanout
    authenticator: TokenAuthenticator


class Cluster:
    """Two processes, one account store, one Redis."""

    def __init__(self, accounts: Database, clock: FakeClock, processes: list[Process]) -> None:
        self.accounts = accounts
        self.clock = clock
        self.here, self.there = processes

    async def log_in(self, device_id: str) -> str:
        """A session of Alice's that both processes know; its token."""
        async with self.accounts.transaction() as tx:
            issued, wakes = await start_session(
                tx, self.clock, IdSource(), TokenLifetimes(), ALICE, device_id, None, refreshable=False
            )
        await self._publish(wakes)
        for process in (self.here, self.there):
            assert (await process.authenticator.authenticate_token(issued.access_token)).device_id == device_id
        return issued.access_token

    async def log_out(self, device_id: str) -> None:
        """As /logout does it, in one of the processes."""
        async with self.accounts.transaction() as tx:
            wakes = await end_devices(tx, ALICE, [device_id])
        self.here.authenticator.forget_device(ALICE, device_id)
        await self._publish(wakes)

    async def _publish(self, wakes: Wakes) -> None:
        await wakes.publish(self.here.fanout)

    async def knows(self, process: Process, token: str) -> bool:
        try:
            await process.authenticator.authenticate_token(token)
        except UnknownToken:
            return False
        return True


async def until_away(fanout: RedisFanout) -> None:
    """Wait until a fan-out knows that Redis is not there."""
    while True:
        try:
            await fanout.ping()
        except RedisUnavailable:
            return


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    server = ValkeyProcess()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def cluster(accounts: Database, valkey: ValkeyProcess) -> AsyncIterator[Cluster]:
    clock = FakeClock()
    async with accounts.transaction() as tx:
        await users.add_user(tx, ALICE, password_hash=None, displayname=None, now_ms=clock.now_ms())
    async with AsyncExitStack() as stack:
        processes = []
        for _ in range(2):
            settings = valkey.settings("test:")
            fanout = await stack.enter_async_context(open_fanout(settings, SystemClock(), IdSource()))
            authenticator = TokenAuthenticator(accounts, clock, LastSeenRecorder(accounts, clock))
            await authenticator.start(fanout)
            stack.push_async_callback(authenticator.stop)
            processes.append(Process(fanout, authenticator))
        yield Cluster(accounts, clock, processes)


async def test_with_redis_a_revoked_token_is_dead_everywhere_at_once(cluster: Cluster) -> None:
    kept, gone = await cluster.log_in("KEPT"), await cluster.log_in("GONE")
    await cluster.log_out("GONE")
    assert not await cluster.knows(cluster.here, gone)
    for _ in range(1_000):  # the clock stands still: only the hint can tell
        if not await cluster.knows(cluster.there, gone):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the other process never heard of it")
    assert await cluster.knows(cluster.there, kept)


async def test_without_redis_a_revoked_token_is_dead_everywhere_after_five_seconds(
    cluster: Cluster, valkey: ValkeyProcess
) -> None:
    gone = await cluster.log_in("GONE")
    valkey.kill()
    for process in (cluster.here, cluster.there):
        await until_away(process.fanout)
    await cluster.log_out("GONE")
    assert not await cluster.knows(cluster.here, gone)
    assert await cluster.knows(cluster.there, gone)  # nobody told it
    cluster.clock.shift(5)
    assert not await cluster.knows(cluster.there, gone)


async def test_the_devices_next_login_ends_its_last_one(cluster: Cluster) -> None:
    old = await cluster.log_in("SAME")
    new = await cluster.log_in("SAME")
    for _ in range(1_000):
        if not await cluster.knows(cluster.there, old):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the other process never heard of it")
    assert await cluster.knows(cluster.there, new)

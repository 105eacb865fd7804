import asyncio
from collections.abc import Sequence

import pytest

from matrixcore.identifiers import UserId
from tessera.clock import FakeClock
from tessera.http.authentication import Requester
from tessera.http.errors import UnknownToken
from tessera.http.requester_cache import RequesterCache
from tessera.storage.database import DatabaseUnavailable

ALICE = UserId("@alice:x")


class Table:
    """Tokens that can be revoked; `asked` are the look-ups, each of which waits for its turn."""

    def __init__(self, **tokens: Requester) -> None:
        self.tokens = tokens
        self.asked: list[set[str]] = []
        self.turn = asyncio.Event()
        self.turn.set()
        self.failure: Exception | None = None

    @property
    def lookups(self) -> int:
        return len(self.asked)

    async def find(self, tokens: Sequence[str]) -> dict[str, Requester]:
        self.asked.append(set(tokens))
        found = {token: self.tokens[token] for token in tokens if token in self.tokens}
        await self.turn.wait()
        if self.failure is not None:
            raise self.failure
        return found


def table_of(count: int) -> Table:
    return Table(**{f"t{number}": Requester(UserId(f"@u{number}:x"), "D") for number in range(count)})


async def test_a_token_is_looked_up_once_in_five_seconds() -> None:
    clock, table = FakeClock(), Table(t=Requester(ALICE, "D"))
    cache = RequesterCache(clock, table.find)
    for _ in range(10):
        assert (await cache.get("t")).user_id == ALICE
    assert table.lookups == 1
    table.tokens.clear()
    clock.shift(5)
    with pytest.raises(UnknownToken):
        await cache.get("t")


async def test_a_token_expires_inside_the_cache() -> None:
    clock = FakeClock()
    cache = RequesterCache(clock, Table(t=Requester(ALICE, "D", expires_ts=clock.now_ms() + 1000)).find)
    await cache.get("t")
    clock.shift(1)
    with pytest.raises(UnknownToken) as caught:
        await cache.get("t")
    assert caught.value.body["soft_logout"] is True


async def test_forgetting_a_device_or_a_user() -> None:
    table = Table(t=Requester(ALICE, "D"), u=Requester(ALICE, "E"))
    cache = RequesterCache(FakeClock(), table.find)
    await cache.get("t")
    await cache.get("u")
    table.tokens.clear()
    cache.forget_device(ALICE, "D")
    with pytest.raises(UnknownToken):
        await cache.get("t")
    await cache.get("u")
    cache.forget_user(ALICE)
    with pytest.raises(UnknownToken):
        await cache.get("u")


async def test_a_lookup_that_a_logout_overtook_is_not_kept() -> None:
    table = Table(t=Requester(ALICE, "D"))

    async def find(tokens: Sequence[str]) -> dict[str, Requester]:
        found = await table.find(tokens)
        table.tokens.clear()
        cache.forget_device(ALICE, "D")
        return found

    cache = RequesterCache(FakeClock(), find)
    await cache.get("t")
    with pytest.raises(UnknownToken):
        await cache.get("t")


async def test_memory_is_bounded() -> None:
    cache = RequesterCache(FakeClock(), Table(**{f"t{n}": Requester(ALICE, "D") for n in range(20)}).find, max_tokens=5)
    for number in range(20):
        await cache.get(f"t{number}")
    assert len(cache) == 5


async def test_who_comes_during_a_lookup_is_in_the_next_with_all_others() -> None:
    table = table_of(5)
    cache = RequesterCache(FakeClock(), table.find)
    table.turn.clear()
    asking = [asyncio.create_task(cache.get("t0"))]
    await asyncio.sleep(0)
    asking += [asyncio.create_task(cache.get(f"t{number}")) for number in (1, 2, 3, 4, 2)]
    await asyncio.sleep(0)
    table.turn.set()
    assert [requester.user_id for requester in await asyncio.gather(*asking)] == [
        UserId(f"@u{number}:x") for number in (0, 1, 2, 3, 4, 2)
    ]
    assert table.asked == [{"t0"}, {"t1", "t2", "t3", "t4"}]


async def test_tokens_in_use_are_looked_up_along_with_another() -> None:
    clock, table = FakeClock(), table_of(4)
    cache = RequesterCache(clock, table.find)
    for token in ("t0", "t1", "t2"):
        await cache.get(token)
    await cache.get("t0")
    await cache.get("t2")
    del table.tokens["t2"]
    clock.shift(3)
    await cache.get("t3")
    assert table.asked[3:] == [{"t3", "t0", "t2"}]
    clock.shift(4)
    await cache.get("t0")
    with pytest.raises(UnknownToken):
        await cache.get("t2")
    clock.shift(1)
    await cache.get("t3")  # t0 was used since
    assert table.asked[4:] == [{"t2", "t0"}, {"t3"}]
    clock.shift(60)
    await cache.get("t3")  # and is in use no longer
    assert table.asked[6:] == [{"t3"}]
    assert len(cache) == 1


async def test_a_lookup_that_fails_fails_for_all_who_waited_for_it_once() -> None:
    table = table_of(3)
    cache = RequesterCache(FakeClock(), table.find)
    table.turn.clear()
    table.failure = DatabaseUnavailable("gone")
    asking = [asyncio.create_task(cache.get(f"t{number}")) for number in (0, 1, 2)]
    await asyncio.sleep(0)
    table.turn.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 3
    assert table.lookups <= 2
    table.failure = None
    await cache.get("t1")


async def test_whoever_waits_goes_on_when_another_is_cancelled() -> None:
    table = table_of(2)
    cache = RequesterCache(FakeClock(), table.find)
    table.turn.clear()
    first, second = (asyncio.create_task(cache.get(token)) for token in ("t0", "t1"))
    await asyncio.sleep(0)
    first.cancel()
    table.turn.set()
    assert (await second).user_id == UserId("@u1:x")
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_logout_during_a_lookup_leaves_the_others_in_the_cache() -> None:
    table = table_of(2)
    cache = RequesterCache(FakeClock(), table.find)
    await cache.get("t0")
    cache.forget_user(UserId("@u0:x"))
    table.turn.clear()
    asking = [asyncio.create_task(cache.get(token)) for token in ("t0", "t1")]
    for _ in range(3):
        await asyncio.sleep(0)
    cache.forget_user(UserId("@u1:x"))
    table.turn.set()
    await asyncio.gather(*asking)
    assert table.asked[1:] in ([{"t0", "t1"}], [{"t0"}, {"t1"}])
    before = table.lookups
    await cache.get("t0")
    assert table.lookups == before

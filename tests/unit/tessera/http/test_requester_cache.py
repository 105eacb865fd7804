import pytest

from matrixcore.identifiers import UserId
from tessera.clock import FakeClock
from tessera.http.authentication import Requester, RequesterCache
from tessera.http.errors import UnknownToken

ALICE = UserId("@alice:x")


class Table:
    """Tokens that can be revoked, counting look-ups."""

    def __init__(self, **tokens: Requester) -> None:
        self.tokens = tokens
        self.lookups = 0

    async def find(self, token: str) -> Requester | None:
        self.lookups += 1
        return self.tokens.get(token)


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

    async def find(token: str) -> Requester | None:
        found = await table.find(token)
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

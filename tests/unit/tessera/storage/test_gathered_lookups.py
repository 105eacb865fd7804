"""Look-ups that share queries."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from tessera.storage.database import DatabaseUnavailable
from tessera.storage.gathered_lookups import GatheredLookups


class Table:
    """Rows that are found when the gate opens."""

    def __init__(self) -> None:
        self.rows = {"a": 1, "b": 2}
        self.queries: list[list[str]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def find(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.queries.append(list(keys))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return found


async def started(lookups: GatheredLookups[str, int], *keys: str) -> list[asyncio.Task[int | None]]:
    tasks = [asyncio.create_task(lookups.find(key)) for key in keys]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_what_is_asked_while_a_query_runs_shares_the_next() -> None:
    table = Table()
    lookups = GatheredLookups(table.find)
    first = await started(lookups, "a")
    table.rows["b"] = 3  # after the first query, before the second
    rest = await started(lookups, "b", "c", "b")
    table.gate.set()
    assert await asyncio.gather(*first, *rest) == [1, 3, None, 3]
    assert table.queries == [["a"], ["b", "c"]]
    assert await lookups.find("b") == 3
    assert table.queries[2:] == [["b"]]


async def test_who_goes_away_takes_nobody_along() -> None:
    table = Table()
    lookups = GatheredLookups(table.find)
    first, other, waiting = [*await started(lookups, "a", "a"), *await started(lookups, "b")]
    first.cancel()
    waiting.cancel()
    table.gate.set()
    assert await other == 1
    assert [list(dict.fromkeys(keys)) for keys in table.queries] == [["a"]]
    assert await lookups.find("b") == 2


async def test_an_error_reaches_those_who_asked_and_no_others() -> None:
    table = Table()
    lookups = GatheredLookups(table.find)
    table.error = DatabaseUnavailable("away")
    asked = await started(lookups, "a", "b")
    table.gate.set()
    for task in asked:
        with pytest.raises(DatabaseUnavailable):
            await task
    table.error = None
    assert await lookups.find("a") == 1


async def test_queries_and_waiting_are_bounded() -> None:
    table = Table()
    lookups = GatheredLookups(table.find, max_keys=2, max_waiting=3)
    asked = [*await started(lookups, "a"), *await started(lookups, "a", "b", "c")]
    with pytest.raises(DatabaseUnavailable):
        await lookups.find("a")
    table.gate.set()
    assert await asyncio.gather(*asked) == [1, 1, 2, None]
    assert table.queries == [["a"], ["a", "b"], ["c"]]

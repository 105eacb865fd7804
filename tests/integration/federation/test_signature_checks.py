"""Many signatures at once: the verdicts are the same wherever they are found."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from key_world import KeyPeer

from matrixcore.identifiers import ServerName
from matrixcore.signing import SigningKey
from tessera.clock import FakeClock
from tessera.federation import signature_checks
from tessera.federation.signature_checks import SignatureChecker, SignedEvent, check_here


@pytest.fixture
async def checker() -> AsyncIterator[SignatureChecker]:
    made = SignatureChecker()
    yield made
    made.close()


def events(count: int) -> list[SignedEvent]:
    """Every seventh is wrong."""
    peer = KeyPeer(ServerName("a.example"), FakeClock())
    liar = SigningKey(peer.key.version, b"l" * 32)
    keys = {peer.name: {peer.key.key_id: peer.key.public_key}}
    return [SignedEvent(peer.event(number, key=None if number % 7 else liar), keys) for number in range(count)]


async def test_threads_and_processes_agree(checker: SignatureChecker) -> None:
    some = events(250)
    expected = check_here(some)
    assert [verdict is not None for verdict in expected] == [number % 7 == 0 for number in range(250)]
    assert await checker.check(some) == expected
    assert await checker.check_in_threads(some) == expected
    both = await asyncio.gather(checker.check_in_processes(some), checker.check_in_processes(some[:101]))
    assert both == [expected, expected[:101]]
    assert await checker.check([]) == []


async def test_a_killed_worker_costs_time_only(checker: SignatureChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_checks, "IN_PROCESSES", 5)
    some = events(20)
    expected = check_here(some)
    assert await checker.check(some) == expected
    pool = checker._processes
    assert pool is not None
    for pid in list(pool._processes):
        os.kill(pid, signal.SIGKILL)
    assert await checker.check(some) == expected
    assert await checker.check(some) == expected


async def test_processes_end_when_they_have_nothing_to_do(
    checker: SignatureChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signature_checks, "IDLE_SECONDS", 0.01)
    some = events(5)
    assert await checker.check_in_processes(some) == check_here(some)
    async with asyncio.timeout(10):
        while checker._processes is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await checker.check_in_processes(some) == check_here(some)


async def test_processes_import_nothing_but_what_checking_takes(checker: SignatureChecker) -> None:
    await checker.check_in_processes(events(1))
    pool = checker._processes
    assert pool is not None
    imported = await asyncio.wrap_future(pool.submit(eval, "list(__import__('sys').modules)"))
    assert "matrixcore.signing" in imported
    assert not {"pytest", "services.cli", "asyncpg", "fastapi"}.intersection(imported)

"""Each attack of a hostile peer is refused or contained, and the room goes on: tests.hostile.table in short."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.peer_certificates import PeerAuthority
from tests.hostile.stage import Stage, opened_stage
from tests.hostile.table import ATTACKS, play

PEAK_MIB = 400


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def stage(
    runner: asyncio.Runner, peer_authority: PeerAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    opened = opened_stage(folder, peer_authority, short=True)
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_contained(runner: asyncio.Runner, stage: Stage, name: str) -> None:
    row = runner.run(play(stage, name))
    assert row.happened
    assert row.memory.peak < PEAK_MIB

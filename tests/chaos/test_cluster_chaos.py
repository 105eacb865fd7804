"""The short form of the cluster under faults; `make chaos` runs the long one."""

import tempfile
from pathlib import Path

import pytest

from tests.chaos.cluster_chaos import Load, run, running_machine

pytestmark = pytest.mark.timeout(300)


async def test_a_cluster_outlives_what_happens_to_it() -> None:
    """Eight faults of eight kinds, nothing lost, nothing doubled, one order."""
    load = Load(sends_a_second=10, rooms=8, listeners=8, members=3, pause_seconds=(0.5, 2.0))
    with tempfile.TemporaryDirectory(prefix="tc-") as folder:  # a short path: sockets lie below it
        async with running_machine(Path(folder)) as machine:
            result = await run(machine, faults=8, seed=3, load=load)
    assert result.faults.total() == 8
    assert sum(map(len, result.ledger.acknowledged.values())) > 0

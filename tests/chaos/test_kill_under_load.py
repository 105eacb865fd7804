"""The short form of the crash test; `make chaos` runs the long one."""

import pytest

from tests.chaos.kill_under_load import run
from tests.fixtures.server_process import ServerProcess

pytestmark = pytest.mark.timeout(300)


async def test_nothing_acknowledged_is_lost_or_doubled(server: ServerProcess) -> None:
    """Three crashes under the load of 20 senders."""
    ledger = await run(server, runs=3, seed=7)
    assert sum(map(len, ledger.acknowledged.values())) == 3 * 20 * 15

"""The short form of the crash test with a bridge."""

import random
from pathlib import Path

import pytest

from tests.chaos.bridge_kills import MESSAGES, SENDERS, bridged_server, run

pytestmark = pytest.mark.timeout(240)


async def test_a_bridge_is_told_of_everything_once_and_in_order(tmp_path: Path) -> None:
    """Three crashes, a bridge that fails now and then, and another one that is never there."""
    async with bridged_server(tmp_path, random.Random(3)) as (server, bridge):
        told = await run(server, bridge, runs=3, seed=3)
    assert told > 3 * SENDERS * MESSAGES
    assert bridge.repeated > 0

"""The whole homeserver in process, and two people who have accounts on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fixtures.whole_server import Device, Talk, WholeServer, running_whole_server


@pytest.fixture
async def server(dsn: str, tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with running_whole_server(dsn, tmp_path) as server:
        yield server


@pytest.fixture
async def alice(server: WholeServer) -> Device:
    return await server.register("alice", device_id="ALICE1")


@pytest.fixture
async def bob(server: WholeServer) -> Device:
    return await server.register("bob", device_id="BOB1")


@pytest.fixture
async def talk(alice: Device, bob: Device) -> Talk:
    room_id = await alice.make_room(preset="private_chat", invite=[bob.user_id])
    await bob.post(f"/join/{room_id}")
    return Talk(room_id, alice, bob)

"""What a closed account leaves behind, against a whole server. Spec: C-S API §Account deactivation."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg

from matrixcore.identifiers import UserId
from tessera.storage import departures, users
from tessera.storage.database import Database
from tests.fixtures.whole_server import Device, Talk, running_whole_server


async def membership(device: Device, room_id: str, user_id: str) -> Any:
    return (await device.get(f"/rooms/{room_id}/state/m.room.member/{user_id}"))["membership"]


async def owed(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM accounts.departures"))
    finally:
        await connection.close()


async def test_a_closed_account_leaves_rejects_and_takes_back(alice: Device, bob: Device, talk: Talk) -> None:
    invited = await alice.make_room(invite=[bob.user_id])
    knocking = [{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]
    knocked = await alice.make_room(initial_state=knocking)
    await bob.post(f"/knock/{knocked}")
    since = (await alice.sync())["next_batch"]
    await bob.confirmed("POST", "/account/deactivate", {})
    for room_id in (talk.room_id, invited, knocked):
        assert await membership(alice, room_id, bob.user_id) == "leave"
    told = (await alice.sync(since))["rooms"]["join"]
    assert told[talk.room_id]["timeline"]["events"][-1]["content"] == {"membership": "leave"}
    assert (await alice.get(f"/rooms/{talk.room_id}/joined_members"))["joined"].keys() == {alice.user_id}


async def test_the_debt_outlives_a_crash(dsn: str, tmp_path: Path) -> None:
    """The process dies right after the account is closed: the next one leaves the rooms."""
    async with running_whole_server(dsn, tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await alice.make_room(invite=[bob.user_id])
        await bob.post(f"/join/{room_id}")
    database = await Database.connect(dsn)
    async with database.transaction() as tx:
        await users.deactivate(tx, UserId(bob.user_id), erase=False)
        await departures.add_departure(tx, UserId(bob.user_id), b"seed" * 4)
    await database.close()
    async with running_whole_server(dsn, tmp_path) as server:
        alice = await server.login("alice")
        answer = await alice.sync()
        async with asyncio.timeout(20):
            while await membership(alice, room_id, bob.user_id) != "leave":
                answer = await alice.sync(answer["next_batch"], timeout=5_000)
    # A join that was on its way may still come, so the debt is kept for a while.
    assert await owed(dsn) == 1

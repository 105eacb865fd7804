"""Notices of the server to its users. Spec: C-S API §Server Notices."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, SERVER

from tessera.config import Settings
from tessera.storage import account_data, users
from tessera.storage.database import Database

PATH = "/_synapse/admin/v1/send_server_notice"
NOTICE = {"msgtype": "m.text", "body": "The server sleeps tonight"}


@pytest.fixture
async def people(accounts: Database, writer: object, http: httpx.AsyncClient, gateway: SimpleNamespace) -> list[Client]:
    """Alice, who is an administrator, and Bob."""
    notices = {"system_mxid_localpart": "notices", "system_mxid_display_name": "The server", "room_topic": "News"}
    gateway.settings = Settings.for_tests(server_name=SERVER, server_notices=notices)
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
    return [Client(http, ALICE, "ADMIN"), Client(http, BOB, "B")]


async def send(client: Client, method: str = "POST", txn: str = "", **body: Any) -> tuple[int, Any]:
    reply = await client._http.request(method, PATH + txn, json=body, headers=client._headers)
    return reply.status_code, reply.json()


async def test_a_user_is_invited_and_told(people: list[Client], accounts: Database) -> None:
    alice, bob = people
    status, first = await send(alice, "PUT", "/1", user_id=BOB, content=NOTICE)
    assert status == 200, first
    assert await send(alice, "PUT", "/1", user_id=BOB, content=NOTICE) == (200, first)
    room_id = await accounts.fetchval("SELECT room_id FROM accounts.notice_rooms")
    async with accounts.reading() as tx:
        assert await account_data.find_content(tx, BOB, room_id, "m.tag") == b'{"tags":{"m.server_notice":{}}}'
    assert await bob.refused("POST", f"/rooms/{room_id}/leave") == (403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")
    await bob.post(f"/join/{room_id}")
    (told,) = (await bob.get(f"/rooms/{room_id}/messages", dir="b", limit=2))["chunk"][1:]
    assert (told["event_id"], told["sender"], told["content"]) == (first["event_id"], f"@notices:{SERVER}", NOTICE)
    assert (await bob.get(f"/rooms/{room_id}/state/m.room.topic"))["topic"] == "News"
    assert (await bob.get(f"/rooms/{room_id}/state/m.room.member/@notices:{SERVER}"))["displayname"] == "The server"
    path = f"/rooms/{room_id}/send/m.room.message/1"
    assert await bob.refused("PUT", path, NOTICE) == (403, "M_FORBIDDEN")
    await bob.post(f"/rooms/{room_id}/leave")
    assert (await send(alice, user_id=BOB, content=NOTICE))[0] == 200
    assert await accounts.fetchval("SELECT count(*) FROM rooms.rooms") == 1
    await bob.post(f"/join/{room_id}")


async def test_notices_without_an_invite_to_accept(people: list[Client], gateway: SimpleNamespace) -> None:
    alice, bob = people
    notices = {"system_mxid_localpart": "notices", "auto_join": True}
    gateway.settings = Settings.for_tests(server_name=SERVER, server_notices=notices)
    assert (await send(alice, user_id=BOB, content=NOTICE))[0] == 200
    assert len((await bob.get("/joined_rooms"))["joined_rooms"]) == 1


async def test_who_may_send_notices_and_which(people: list[Client], gateway: SimpleNamespace) -> None:
    alice, bob = people
    assert (await send(bob, user_id=ALICE, content=NOTICE))[0] == 403
    for body, status in (
        ({"content": NOTICE}, 400),
        ({"user_id": 1, "content": NOTICE}, 400),
        ({"user_id": "@x:far.org", "content": NOTICE}, 400),
        ({"user_id": CAROL, "content": NOTICE}, 404),
        ({"user_id": BOB}, 400),
        ({"user_id": BOB, "content": NOTICE, "type": 1}, 400),
        ({"user_id": BOB, "content": {"membership": "join"}, "type": "m.room.member", "state_key": ALICE}, 400),
    ):
        assert (await send(alice, **body))[0] == status, body
    gateway.settings = Settings.for_tests(server_name=SERVER)
    assert (await send(alice, user_id=BOB, content=NOTICE))[0] == 400

"""Invites of e-mail addresses, with an identity server over real TLS."""

from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB

from services.rooms.shard_writer import ShardWriter
from tessera.storage import users
from tessera.storage.database import Database
from tests.fixtures.identity_server import TOKEN, IdentityServerDouble, running_identity_server

pytestmark = pytest.mark.usefixtures("writer")


@pytest.fixture
async def identity(gateway: SimpleNamespace, tmp_path: Path) -> AsyncIterator[IdentityServerDouble]:
    async with running_identity_server(tmp_path, ip_network("127.0.0.0/8")) as double:
        gateway.calls = double.calls
        yield double


@pytest.fixture
async def alice(http: httpx.AsyncClient, accounts: Database, writer: ShardWriter) -> Client:
    async with accounts.transaction() as tx:
        for user_id, name in ((ALICE, "Alice"), (BOB, "Bob")):
            await users.add_user(tx, user_id, password_hash=None, displayname=name, now_ms=0)
    return Client(http, ALICE, "A")


def body_of(identity: IdentityServerDouble, address: str = "Eve@example.org", **fields: Any) -> dict[str, Any]:
    return {"medium": "email", "address": address, "id_server": identity.name, "id_access_token": TOKEN, **fields}


async def test_an_address_that_somebody_has_invites_the_user(alice: Client, identity: IdentityServerDouble) -> None:
    identity.owners["email", "bob@example.org"] = BOB
    room_id = (await alice.post("/createRoom", {}))["room_id"]
    await alice.post(f"/rooms/{room_id}/invite", body_of(identity, "bob@example.org"))
    assert (await alice.get(f"/rooms/{room_id}/state/m.room.member/{BOB}"))["membership"] == "invite"
    assert identity.invites == []


async def test_an_address_of_nobody_leaves_a_token_in_the_room(alice: Client, identity: IdentityServerDouble) -> None:
    room_id = (await alice.post("/createRoom", {"name": "Garden"}))["room_id"]
    await alice.post(f"/rooms/{room_id}/invite", body_of(identity))
    (told,) = identity.invites
    assert told == {
        "medium": "email",
        "address": "eve@example.org",
        "room_id": room_id,
        "sender": ALICE,
        "sender_display_name": "Alice",
        "room_name": "Garden",
        "room_join_rules": "invite",
    }
    content = await alice.get(f"/rooms/{room_id}/state/m.room.third_party_invite/invite-token")
    assert content["display_name"] == "a...@e..."
    assert content["public_key"] == "own+key"
    assert [key["public_key"] for key in content["public_keys"]] == ["own+key", "ephemeral+key"]
    assert content["key_validity_url"].endswith("/pubkey/isvalid")


async def test_a_new_room_invites_addresses(alice: Client, identity: IdentityServerDouble) -> None:
    room_id = (await alice.post("/createRoom", {"invite_3pid": [body_of(identity)]}))["room_id"]
    assert (await alice.get(f"/rooms/{room_id}/state/m.room.third_party_invite/invite-token"))["public_keys"]
    # A room is made even if nobody can be told of it.
    wrong = body_of(identity, id_access_token="wrong")
    assert "room_id" in await alice.post("/createRoom", {"invite_3pid": [wrong]})


async def test_who_may_not_invite_addresses(
    alice: Client, identity: IdentityServerDouble, http: httpx.AsyncClient
) -> None:
    room_id = (await alice.post("/createRoom", {}))["room_id"]
    invite = f"/rooms/{room_id}/invite"
    assert await Client(http, BOB, "B").refused("POST", invite, body_of(identity)) == (403, "M_FORBIDDEN")
    assert identity.invites == []
    refusals: list[tuple[dict[str, Any], tuple[int, str]]] = [
        (body_of(identity, id_access_token="wrong"), (403, "M_UNAUTHORIZED")),
        (body_of(identity, medium="msisdn", address="447700900000"), (403, "M_THREEPID_DENIED")),
        (body_of(identity, address="nobody"), (400, "M_INVALID_PARAM")),
        (body_of(identity, id_server="https://user@host/path"), (400, "M_INVALID_PARAM")),
        (body_of(identity, id_server="127.0.0.1:1"), (502, "M_UNKNOWN")),
        ({"medium": "email", "address": "a@b.example"}, (400, "M_MISSING_PARAM")),
    ]
    for body, expected in refusals:
        assert await alice.refused("POST", invite, body) == expected

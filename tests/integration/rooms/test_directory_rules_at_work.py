"""The operator's rules for aliases and for the directory, over HTTP."""

from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, SERVER

from services.gateway.directory_rules import DirectoryRules
from tessera.config import Settings
from tessera.storage import users
from tessera.storage.database import Database

DENIED = (403, "M_FORBIDDEN")


@pytest.fixture
async def alice(gateway: SimpleNamespace, accounts: Database, writer: object, http: httpx.AsyncClient) -> Client:
    """Alice, on a server where only aliases of teams may be made, and only rooms with one may be published."""
    rules = [{"alias": "#team_*", "action": "allow"}]
    gateway.settings = Settings.for_tests(alias_creation_rules=rules, room_list_publication_rules=rules)
    gateway.room_maker = replace(gateway.room_maker, rules=DirectoryRules.of(gateway.settings))
    async with accounts.transaction() as tx:
        await users.add_user(tx, ALICE, password_hash=None, displayname=None, now_ms=1)
    return Client(http, ALICE, "D")


async def test_new_rooms_are_made_within_the_rules_or_not_at_all(alice: Client) -> None:
    for body in ({"room_alias_name": "chat"}, {"visibility": "public"}):
        assert await alice.refused("POST", "/createRoom", body) == DENIED
    assert await alice.get("/joined_rooms") == {"joined_rooms": []}
    reply = await alice.post("/createRoom", {"room_alias_name": "team_a", "visibility": "public"})
    assert await alice.get(f"/directory/list/room/{reply['room_id']}") == {"visibility": "public"}
    assert (await alice.get(f"/directory/room/%23team_a:{SERVER}"))["room_id"] == reply["room_id"]


async def test_aliases_and_publication_of_rooms_that_exist(alice: Client) -> None:
    room_id = (await alice.post("/createRoom", {}))["room_id"]
    listing = f"/directory/list/room/{room_id}"
    assert await alice.refused("PUT", listing, {"visibility": "public"}) == DENIED
    assert await alice.refused("PUT", f"/directory/room/%23chat:{SERVER}", {"room_id": room_id}) == DENIED
    await alice.put(f"/directory/room/%23team_b:{SERVER}", {"room_id": room_id})
    await alice.put(listing, {"visibility": "public"})
    await alice.put(listing, {"visibility": "private"})


async def test_the_directory_is_for_users_unless_it_is_opened(
    alice: Client, gateway: SimpleNamespace, http: httpx.AsyncClient
) -> None:
    path = "/_matrix/client/v3/publicRooms"
    refused = await http.get(path)
    assert (refused.status_code, refused.json()["errcode"]) == (401, "M_MISSING_TOKEN")
    assert (await alice.get("/publicRooms"))["chunk"] == []
    gateway.settings = Settings.for_tests(allow_public_rooms_without_auth=True)
    assert (await http.get(path)).json()["chunk"] == []

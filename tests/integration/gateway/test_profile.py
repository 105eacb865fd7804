"""Profiles: standard and custom fields, limits, and what is owed to the rooms."""

from collections.abc import Callable

import pytest
from gateway_server import Server

from services.gateway import profile_propagation
from tessera.http.errors import Unavailable
from tessera.http.limits import Rate
from tessera.storage import profiles

Make = Callable[..., Server]
ALICE = "@alice:test.example"


async def test_a_new_user_has_a_name(server: Server) -> None:
    await server.register("alice")
    assert (await server.get(f"/profile/{ALICE}")).json() == {"displayname": "alice"}


async def test_fields_are_set_read_and_deleted(server: Server) -> None:
    alice = await server.register("alice")
    fields = {
        "displayname": "Alice",
        "avatar_url": "mxc://test.example/abc",
        "m.tz": "Europe/London",
        "org.example.job": {"title": "engineer", "since": 1999},
        "org.example.nothing": None,
    }
    for key, value in fields.items():
        assert (await alice.put(f"/profile/{ALICE}/{key}", {key: value})).json() == {}
    assert (await server.get(f"/profile/{ALICE}")).json() == fields
    for key, value in fields.items():
        assert (await server.get(f"/profile/{ALICE}/{key}")).json() == {key: value}
        assert (await alice.delete(f"/profile/{ALICE}/{key}")).json() == {}
        assert (await alice.delete(f"/profile/{ALICE}/{key}")).json() == {}
        gone = await server.get(f"/profile/{ALICE}/{key}")
        assert (gone.status_code, gone.json()["errcode"]) == (404, "M_NOT_FOUND")
    assert (await server.get(f"/profile/{ALICE}")).json() == {}


async def test_an_empty_name_takes_it_away(server: Server) -> None:
    alice = await server.register("alice")
    await alice.put(f"/profile/{ALICE}/displayname", {"displayname": ""})
    assert (await server.get(f"/profile/{ALICE}")).json() == {}


async def test_only_names_and_avatars_go_into_the_rooms_and_only_when_they_change(server: Server) -> None:
    alice = await server.register("alice")
    await alice.put(f"/profile/{ALICE}/displayname", {"displayname": "Alice"})
    await alice.put(f"/profile/{ALICE}/displayname", {"displayname": "Alice"})
    await alice.put(f"/profile/{ALICE}/m.tz", {"m.tz": "Europe/London"})
    assert server.propagated == [ALICE]
    await alice.delete(f"/profile/{ALICE}/avatar_url")
    assert server.propagated == [ALICE]
    async with server.accounts.reading() as tx:
        assert await profiles.list_debts(tx) == []


async def test_rooms_that_are_away_are_owed_the_change(server: Server) -> None:
    alice = await server.register("alice")

    async def fail(user_id: str) -> None:
        raise Unavailable

    object.__setattr__(server.gateway, "propagate_profile", fail)
    assert (await alice.put(f"/profile/{ALICE}/displayname", {"displayname": "Alice"})).status_code == 200
    async with server.accounts.reading() as tx:
        assert [debt.user_id for debt in await profiles.list_debts(tx)] == [ALICE]
    assert await profile_propagation.settle_all(server.accounts, fail) == 0
    done: list[str] = []

    async def succeed(user_id: str) -> None:
        done.append(user_id)

    assert await profile_propagation.settle_all(server.accounts, succeed) == 1
    assert await profile_propagation.settle_all(server.accounts, succeed) == 0
    assert done == [ALICE]


@pytest.mark.parametrize(
    ("key", "body", "status", "errcode"),
    [
        ("displayname", {}, 400, "M_MISSING_PARAM"),
        ("displayname", {"displayname": None}, 400, "M_BAD_JSON"),
        ("displayname", {"displayname": "x" * 300}, 400, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": "https://example.org/a.png"}, 400, "M_INVALID_PARAM"),
        ("m.tz", {"m.tz": 5}, 400, "M_BAD_JSON"),
        ("nickname", {"nickname": "x"}, 400, "M_INVALID_PARAM"),
        ("Org.Example", {"Org.Example": "x"}, 400, "M_INVALID_PARAM"),
        ("org." + "x" * 260, {}, 400, "M_KEY_TOO_LARGE"),
        ("org.example.big", {"org.example.big": "x" * 70_000}, 400, "M_PROFILE_TOO_LARGE"),
    ],
)
async def test_refused_fields(server: Server, key: str, body: dict[str, object], status: int, errcode: str) -> None:
    alice = await server.register("alice")
    refused = await alice.put(f"/profile/{ALICE}/{key}", body)
    assert (refused.status_code, refused.json()["errcode"]) == (status, errcode)


async def test_the_whole_profile_has_one_limit(server: Server) -> None:
    alice = await server.register("alice")
    for number in range(4):
        key = f"org.example.part{number}"
        response = await alice.put(f"/profile/{ALICE}/{key}", {key: "x" * 20_000})
        assert response.status_code == (200 if number < 3 else 400)


async def test_others_profiles_cannot_be_changed_nor_unknown_ones_read(server: Server) -> None:
    await server.register("alice")
    bob = await server.register("bob")
    refused = await bob.put(f"/profile/{ALICE}/displayname", {"displayname": "Mallory"})
    assert (refused.status_code, refused.json()["errcode"]) == (403, "M_FORBIDDEN")
    assert (await bob.delete(f"/profile/{ALICE}/displayname")).status_code == 403
    for user_id in ("@nobody:test.example", "@someone:elsewhere.org"):
        unknown = await server.get(f"/profile/{user_id}")
        assert (unknown.status_code, unknown.json()["errcode"]) == (404, "M_NOT_FOUND")
    assert (await server.get("/profile/nonsense")).json()["errcode"] == "M_INVALID_PARAM"


async def test_the_operator_may_manage_names_and_close_profiles(make_server: Make) -> None:
    server = make_server(enable_set_displayname=False, require_auth_for_profile_requests=True)
    alice = await server.register("alice")
    refused = await alice.put(f"/profile/{ALICE}/displayname", {"displayname": "Alice"})
    assert (refused.status_code, refused.json()["errcode"]) == (403, "M_FORBIDDEN")
    assert (await server.get(f"/profile/{ALICE}")).status_code == 401
    assert (await alice.get(f"/profile/{ALICE}")).status_code == 200
    capabilities = (await alice.get("/capabilities")).json()["capabilities"]
    assert capabilities["m.profile_fields"] == {"enabled": True, "disallowed": ["displayname"]}
    assert capabilities["m.set_displayname"] == {"enabled": False}


async def test_profiles_may_be_for_people_in_the_same_rooms_only(make_server: Make) -> None:
    server = make_server(require_auth_for_profile_requests=True, limit_profile_requests_to_users_who_share_rooms=True)
    alice, bob = await server.register("alice"), await server.register("bob")
    assert (await alice.get(f"/profile/{ALICE}")).status_code == 200
    refused = await bob.get(f"/profile/{ALICE}")
    assert (refused.status_code, refused.json()["errcode"]) == (403, "M_FORBIDDEN")
    await server.join("!room:test.example", alice, bob)
    assert (await bob.get(f"/profile/{ALICE}")).status_code == 200


async def test_a_profile_is_one_query(server: Server) -> None:
    await server.register("alice")
    async with server.accounts.counting() as count:
        await server.get(f"/profile/{ALICE}")
    assert (count.statements, count.transactions) == (1, 0)


async def test_reads_are_bounded_by_reader_and_by_address(make_server: Make) -> None:
    server = make_server(rates={"rc_profile": Rate(0.1, 2)})
    alice, bob = await server.register("alice"), await server.register("bob")
    for _ in range(2):
        assert (await alice.get(f"/profile/{ALICE}")).status_code == 200
    assert (await alice.get(f"/profile/{ALICE}/displayname")).status_code == 429
    assert (await bob.get(f"/profile/{ALICE}")).status_code == 200
    forged = {"Authorization": "Bearer nobody's"}
    for headers in (None, forged):
        assert (await server.get(f"/profile/{ALICE}", headers=headers)).status_code == 200
    assert (await server.get(f"/profile/{ALICE}", headers=forged)).status_code == 429


async def test_changes_are_bounded_as_messages_are(make_server: Make) -> None:
    server = make_server(rates={"rc_message": Rate(0.1, 2)})
    alice = await server.register("alice")
    path = f"/profile/{ALICE}/displayname"
    assert (await alice.put(path, {"displayname": "A"})).status_code == 200
    assert (await alice.delete(path)).status_code == 200
    limited = await alice.put(path, {"displayname": "B"})
    assert (limited.status_code, limited.json()["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert limited.json()["retry_after_ms"] == 10_000

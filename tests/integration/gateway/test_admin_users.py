"""Administration of accounts by Synapse's paths."""

import httpx
import pytest
from gateway_server import PASSWORD, Server, Session, login_body

from tessera.storage import users

V1, V2 = "/_synapse/admin/v1", "/_synapse/admin/v2"


@pytest.fixture
async def admin(server: Server) -> Session:
    session = await server.register("admin")
    async with server.accounts.transaction() as tx:
        await users.set_admin(tx, session.user_id, True)
    server.gateway.authenticator.forget_user(session.user_id)
    return session


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["errcode"]


async def test_the_list_of_accounts(server: Server, admin: Session) -> None:
    for name in ("alice", "bob", "carol"):
        await server.register(name)
    page = (await admin.get(f"{V2}/users?limit=2")).json()
    assert [user["name"] for user in page["users"]] == ["@admin:test.example", "@alice:test.example"]
    assert (page["total"], page["next_token"]) == (4, "2")
    rest = (await admin.get(f"{V2}/users?limit=2&from=2")).json()
    assert [user["displayname"] for user in rest["users"]] == ["bob", "carol"]
    assert "next_token" not in rest
    found = (await admin.get(f"{V2}/users?name=ARO&order_by=creation_ts&dir=b")).json()
    assert [user["name"] for user in found["users"]] == ["@carol:test.example"]
    assert (await admin.get(f"{V2}/users?admins=true")).json()["total"] == 1
    assert (await admin.get(f"{V2}/users?user_id=%25")).json()["total"] == 0
    assert refusal(await admin.get(f"{V2}/users?order_by=password_hash")) == (400, "M_INVALID_PARAM")
    for wrong in ("from=-1", "limit=0", "limit=x", "dir=up"):
        assert (await admin.get(f"{V2}/users?{wrong}")).status_code == 400


async def test_an_account_is_made_and_changed(server: Server, admin: Session) -> None:
    path = f"{V2}/users/@alice:test.example"
    assert refusal(await admin.get(path)) == (404, "M_NOT_FOUND")
    body = {
        "password": PASSWORD,
        "displayname": "Alice",
        "threepids": [{"medium": "email", "address": "Alice@example.org"}],
        "user_type": "support",
    }
    made = await admin.put(path, body)
    assert made.status_code == 201
    reply = made.json()
    assert (reply["displayname"], reply["user_type"], reply["admin"]) == ("Alice", "support", False)
    assert [one["address"] for one in reply["threepids"]] == ["alice@example.org"]
    assert "password" not in str(reply)
    alice = await server.login("alice")
    changed = await admin.put(path, {"displayname": "Al", "threepids": [], "admin": True})
    assert (changed.status_code, changed.json()["threepids"], changed.json()["admin"]) == (200, [], True)
    assert server.propagated[-1] == alice.user_id
    assert (await alice.get(f"{V2}/users")).status_code == 200  # the rights are there at once
    assert (await admin.put(path, {"locked": True})).json()["locked"] is True
    assert refusal(await alice.get("/account/whoami")) == (401, "M_USER_LOCKED")
    assert (await admin.put(path, {"locked": False, "admin": False})).json()["admin"] is False
    closed = await admin.put(path, {"deactivated": True})
    assert closed.json()["deactivated"] is True
    assert refusal(await alice.get("/account/whoami")) == (401, "M_UNKNOWN_TOKEN")
    assert refusal(await admin.put(path, {"deactivated": False})) == (400, "M_INVALID_PARAM")


async def test_a_password_is_reset(server: Server, admin: Session) -> None:
    alice = await server.register("alice")
    path = f"{V1}/reset_password/{alice.user_id}"
    assert (await admin.post(path, {"new_password": "given anew", "logout_devices": False})).json() == {}
    assert (await alice.get("/account/whoami")).status_code == 200
    assert refusal(await server.post("/login", login_body("alice"))) == (403, "M_FORBIDDEN")
    await admin.post(path, {"new_password": "and again"})
    assert (await alice.get("/account/whoami")).status_code == 401
    await server.login("alice", password="and again")
    assert refusal(await admin.post(path, {})) == (400, "M_MISSING_PARAM")


async def test_accounts_are_closed_and_rights_given(server: Server, admin: Session) -> None:
    alice, bob = await server.register("alice", "PHONE"), await server.register("bob")
    rights = f"{V1}/users/{alice.user_id}/admin"
    assert (await admin.get(rights)).json() == {"admin": False}
    assert (await admin.put(rights, {"admin": True})).json() == {}
    assert (await alice.get(rights)).json() == {"admin": True}
    assert refusal(await admin.put(f"{V1}/users/{admin.user_id}/admin", {"admin": False})) == (403, "M_FORBIDDEN")
    found = (await admin.get(f"{V2}/users/{alice.user_id}/devices")).json()
    assert [device["device_id"] for device in found["devices"]] == ["PHONE"]
    assert (await admin.delete(f"{V2}/users/{alice.user_id}/devices/PHONE")).json() == {}
    assert (await alice.get("/account/whoami")).status_code == 401
    assert (await admin.post(f"{V1}/deactivate/{bob.user_id}", {"erase": True})).status_code == 200
    assert (await admin.get(f"{V2}/users/{bob.user_id}")).json()["erased"] is True
    await server.join("!room:test.example", alice)
    rooms = (await admin.get(f"{V1}/users/{alice.user_id}/joined_rooms")).json()
    assert rooms == {"joined_rooms": ["!room:test.example"], "total": 1}
    assert (await admin.get(f"{V1}/username_available?username=dora")).json() == {"available": True}
    assert refusal(await admin.get(f"{V1}/username_available?username=bob")) == (400, "M_USER_IN_USE")


async def test_only_administrators_administer(server: Server) -> None:
    alice = await server.register("alice")
    calls = [
        ("GET", f"{V2}/users"),
        ("GET", f"{V2}/users/{alice.user_id}"),
        ("PUT", f"{V2}/users/{alice.user_id}"),
        ("POST", f"{V1}/reset_password/{alice.user_id}"),
        ("POST", f"{V1}/deactivate/{alice.user_id}"),
        ("PUT", f"{V1}/users/{alice.user_id}/admin"),
        ("PUT", f"{V1}/suspend/{alice.user_id}"),
        ("GET", f"{V1}/users/{alice.user_id}/joined_rooms"),
        ("GET", f"{V2}/users/{alice.user_id}/devices"),
        ("DELETE", f"{V2}/users/{alice.user_id}/devices/X"),
        ("GET", f"{V1}/rooms"),
        ("GET", f"{V1}/rooms/!room:test.example"),
        ("GET", f"{V1}/rooms/!room:test.example/members"),
        ("GET", f"{V1}/username_available?username=dora"),
    ]
    for method, path in calls:
        assert refusal(await alice.request(method, path, {"admin": True})) == (403, "M_FORBIDDEN"), path
        assert (await server.client.request(method, path)).status_code == 401, path
    version = (await server.get(f"{V1}/server_version")).json()["server_version"]
    assert version.startswith("Tessera ")


@pytest.mark.parametrize(
    "body",
    [
        {"password": 5},
        {"password": ""},
        {"admin": "yes"},
        {"user_type": "robot"},
        {"threepids": [{"medium": "email"}]},
        {"threepids": "x"},
        {"displayname": 5},
        {"external_ids": [{"auth_provider": "x"}]},
    ],
)
async def test_bodies_that_make_no_account(admin: Session, body: dict[str, object]) -> None:
    path = f"{V2}/users/@alice:test.example"
    assert (await admin.put(path, body)).status_code == 400
    assert (await admin.get(path)).status_code == 404
    assert refusal(await admin.put(f"{V2}/users/@alice:elsewhere.example", {})) == (400, "M_INVALID_PARAM")

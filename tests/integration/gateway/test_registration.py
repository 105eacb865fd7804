"""POST /register, GET /register/available and the shared-secret registration."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from gateway_server import PASSWORD, Server

from services.gateway.admin_register import registration_mac
from services.gateway.registration import register_user
from tessera.http.errors import Exclusive
from tessera.http.limits import Rate
from tessera.storage import users

Make = Callable[..., Server]
DUMMY = {"type": "m.login.dummy"}


async def test_the_first_request_is_asked_for_a_stage_and_the_second_registers(server: Server) -> None:
    body = {"username": "alice", "password": PASSWORD, "device_id": "PHONE", "initial_device_display_name": "phone"}
    asked = await server.post("/register", body)
    assert asked.status_code == 401
    challenge = asked.json()
    assert challenge["flows"] == [{"stages": ["m.login.dummy"]}]
    assert "errcode" not in challenge
    done = await server.post("/register", {**body, "auth": {**DUMMY, "session": challenge["session"]}})
    assert done.status_code == 200
    reply = done.json()
    assert reply["user_id"] == "@alice:test.example"
    assert reply["device_id"] == "PHONE"
    assert "refresh_token" not in reply
    session = server.session(reply)
    assert (await session.get("/account/whoami")).json() == {
        "user_id": "@alice:test.example",
        "device_id": "PHONE",
        "is_guest": False,
    }
    assert (await session.get("/devices")).json()["devices"][0]["display_name"] == "phone"


async def test_a_session_is_good_for_one_account(server: Server) -> None:
    asked = await server.post("/register", {})
    auth = {"type": "m.login.dummy", "session": asked.json()["session"]}
    first = await server.post("/register", {"username": "alice", "password": PASSWORD, "auth": auth})
    assert first.json()["user_id"] == "@alice:test.example"
    again = await server.post(
        "/register", {"username": "bob", "password": PASSWORD, "auth": {"session": auth["session"]}}
    )
    assert again.status_code == 401
    assert again.json()["session"] != auth["session"]


async def test_closed_by_default(make_server: Make) -> None:
    server = make_server(enable_registration=False)
    refused = await server.post("/register", {"username": "alice", "password": PASSWORD, "auth": DUMMY})
    assert refused.status_code == 403
    assert refused.json()["errcode"] == "M_FORBIDDEN"
    assert "disabled" in refused.json()["error"]


async def test_guests_are_the_operator_s_choice(make_server: Make) -> None:
    refused = await make_server().post("/register?kind=guest", {})
    assert (refused.status_code, refused.json()["errcode"]) == (403, "M_FORBIDDEN")
    server = make_server(allow_guest_access=True)
    reply = (await server.post("/register?kind=guest", {"username": "alice", "device_id": "MINE"})).json()
    assert reply["user_id"] != "@alice:test.example"
    assert reply["device_id"] != "MINE"
    assert (await server.session(reply).get("/account/whoami")).json()["is_guest"] is True
    assert (await server.post("/register?kind=robot", {})).json()["errcode"] == "M_INVALID_PARAM"


async def test_what_guests_may_do_with_their_account(make_server: Make) -> None:
    server = make_server(allow_guest_access=True)
    guest = server.session((await server.post("/register?kind=guest", {})).json())
    profile = f"/profile/{guest.user_id}"
    assert (await guest.put(f"{profile}/displayname", {"displayname": "Visitor"})).json() == {}
    assert (await guest.get(f"{profile}/displayname")).json() == {"displayname": "Visitor"}
    assert (await guest.get(f"/devices/{guest.device_id}")).json()["device_id"] == guest.device_id
    assert (await guest.post("/keys/query", {"device_keys": {}})).status_code == 200
    assert (await guest.post(f"/user/{guest.user_id}/filter", {})).status_code == 200
    closed = [
        ("PUT", f"{profile}/avatar_url", {"avatar_url": "mxc://a/b"}),
        ("DELETE", f"{profile}/avatar_url", None),
        ("PUT", f"/user/{guest.user_id}/account_data/a", {}),
        ("POST", "/account/password", {}),
        ("POST", "/account/deactivate", {}),
        ("GET", "/pushers", None),
        ("GET", "/pushrules/", None),
        ("PUT", f"/presence/{guest.user_id}/status", {"presence": "online"}),
        ("POST", "/user_directory/search", {"search_term": "a"}),
        ("POST", "/keys/device_signing/upload", {}),
    ]
    for method, path, body in closed:
        refused = await guest.request(method, path, body)
        assert (refused.status_code, refused.json()["errcode"]) == (403, "M_GUEST_ACCESS_FORBIDDEN"), path
    assert (await guest.post("/logout")).json() == {}


@pytest.mark.parametrize(
    ("username", "errcode"),
    [
        ("alice", "M_USER_IN_USE"),
        ("ALICE", "M_USER_IN_USE"),
        ("al ice", "M_INVALID_USERNAME"),
        ("älice", "M_INVALID_USERNAME"),
        ("_alice", "M_INVALID_USERNAME"),
        ("a" * 250, "M_INVALID_USERNAME"),
        ("a:b", "M_INVALID_USERNAME"),
    ],
)
async def test_names_that_cannot_be_had(server: Server, username: str, errcode: str) -> None:
    await server.register("alice")
    # Refused before the interactive authentication, as the specification wants it.
    refused = await server.post("/register", {"username": username, "password": PASSWORD})
    assert (refused.status_code, refused.json()["errcode"]) == (400, errcode)
    available = await server.get("/register/available", params={"username": username})
    assert (available.status_code, available.json()["errcode"]) == (400, errcode)


class _Bridge:
    def is_user_claimed(self, user_id: str) -> bool:
        return user_id.startswith("@irc_")


async def test_a_bridge_s_names_are_exclusive(server: Server) -> None:
    server = replace(server, gateway=replace(server.gateway, claims=_Bridge()))
    with pytest.raises(Exclusive):
        await register_user(server.gateway, {"username": "irc_bob", "password": PASSWORD}, "")


async def test_a_free_name_is_available(server: Server) -> None:
    assert (await server.get("/register/available", params={"username": "bob"})).json() == {"available": True}
    assert (await server.get("/register/available")).json()["errcode"] == "M_MISSING_PARAM"


async def test_inhibit_login_and_a_name_of_the_server_s_choice(server: Server) -> None:
    reply = await server.post("/register", {"password": PASSWORD, "inhibit_login": True, "auth": DUMMY})
    assert reply.status_code == 200
    assert reply.json().keys() == {"user_id", "home_server"}
    assert (await server.login(reply.json()["user_id"])).user_id == reply.json()["user_id"]


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"username": 5}, "M_BAD_JSON"),
        ({"username": "a", "password": ["x"]}, "M_BAD_JSON"),
        ({"username": "a", "inhibit_login": "yes"}, "M_BAD_JSON"),
        ({"username": "a", "auth": "dummy"}, "M_BAD_JSON"),
        ({"username": "a", "auth": DUMMY}, "M_MISSING_PARAM"),
        ({"username": "a", "password": "", "auth": DUMMY}, "M_INVALID_PARAM"),
        ({"username": "a", "password": "x" * 2000, "auth": DUMMY}, "M_INVALID_PARAM"),
        ({"username": "a", "password": PASSWORD, "device_id": "x" * 300, "auth": DUMMY}, "M_INVALID_PARAM"),
    ],
)
async def test_bad_bodies(server: Server, body: dict[str, object], errcode: str) -> None:
    refused = await server.post("/register", body)
    assert (refused.status_code, refused.json()["errcode"]) == (400, errcode)


async def test_not_json(server: Server) -> None:
    refused = await server.client.post("/_matrix/client/v3/register", content=b"{nope")
    assert (refused.status_code, refused.json()["errcode"]) == (400, "M_NOT_JSON")


async def test_registrations_are_limited_by_address(make_server: Make) -> None:
    server = make_server(rates={"rc_registration": Rate(0.1, 2)})
    for _ in range(2):
        assert (await server.post("/register", {"username": "alice"})).status_code == 401
    limited = await server.post("/register", {"username": "alice"})
    assert limited.status_code == 429
    assert limited.json()["retry_after_ms"] > 0


async def _admin_register(server: Server, *, secret: str = "the-shared-secret", **fields: object) -> httpx.Response:
    path = "/_synapse/admin/v1/register"
    nonce = (await server.get(path)).json()["nonce"]
    is_admin = bool(fields.get("admin", False))
    mac = registration_mac(secret, nonce, "root", PASSWORD, is_admin=is_admin)
    return await server.post(path, {"nonce": nonce, "username": "root", "password": PASSWORD, "mac": mac, **fields})


async def test_the_shared_secret_registers_an_administrator_though_registration_is_closed(make_server: Make) -> None:
    server = make_server(enable_registration=False)
    reply = await _admin_register(server, admin=True, displayname="Root")
    assert reply.status_code == 200
    assert reply.json()["user_id"] == "@root:test.example"
    assert reply.json()["access_token"]
    async with server.accounts.reading() as tx:
        user = await users.find_user(tx, reply.json()["user_id"])
    assert user is not None
    assert user.is_admin
    assert (await server.get("/profile/@root:test.example/displayname")).json() == {"displayname": "Root"}


async def test_the_shared_secret_is_checked_and_its_nonce_used_up(server: Server) -> None:
    wrong = await _admin_register(server, secret="guessed")
    assert (wrong.status_code, wrong.json()["errcode"]) == (403, "M_FORBIDDEN")
    path = "/_synapse/admin/v1/register"
    nonce = (await server.get(path)).json()["nonce"]
    body = {
        "nonce": nonce,
        "username": "root",
        "password": PASSWORD,
        "mac": registration_mac("the-shared-secret", nonce, "root", PASSWORD, is_admin=False),
    }
    assert (await server.post(path, body)).status_code == 200
    again = await server.post(path, body)
    assert (again.status_code, again.json()["error"]) == (400, "unrecognised nonce")
    late = (await server.get(path)).json()["nonce"]
    server.clock.shift(61)
    assert (await server.post(path, {**body, "nonce": late})).status_code == 400


async def test_without_a_shared_secret_there_is_no_such_registration(make_server: Make) -> None:
    server = make_server(registration_shared_secret=None)
    assert (await server.get("/_synapse/admin/v1/register")).status_code == 400


def test_the_mac_is_synapse_s() -> None:
    message = b"nonce\x00root\x00pass\x00admin"
    expected = hmac.new(b"secret", message, hashlib.sha1).hexdigest()
    assert registration_mac("secret", "nonce", "root", "pass", is_admin=True) == expected

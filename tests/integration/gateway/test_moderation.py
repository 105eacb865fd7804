"""Locked and suspended accounts, whois, login tokens, OpenID tokens."""

from collections.abc import Callable

from gateway_server import Server, Session, login_body, password_auth

from tessera.http.limits import Rate
from tessera.storage import users
from tessera.storage.one_time_logins import find_openid_user

Make = Callable[..., Server]
V1 = "/_matrix/client/v1"


async def administrator(server: Server) -> Session:
    admin = await server.register("admin")
    async with server.accounts.transaction() as tx:
        await users.set_admin(tx, admin.user_id, True)
    server.gateway.authenticator.forget_user(admin.user_id)
    return admin


async def test_a_locked_account_can_only_log_out(server: Server) -> None:
    admin, alice = await administrator(server), await server.register("alice")
    path = f"{V1}/admin/lock/{alice.user_id}"
    assert (await admin.get(path)).json() == {"locked": False}
    assert (await admin.put(path, {"locked": True})).json() == {"locked": True}
    assert (await admin.get(path)).json() == {"locked": True}
    refused = await alice.get("/account/whoami")
    assert (refused.status_code, refused.json()["errcode"]) == (401, "M_USER_LOCKED")
    assert refused.json()["soft_logout"] is True
    login = await server.post("/login", login_body("alice"))
    assert (login.status_code, login.json()["errcode"]) == (401, "M_USER_LOCKED")
    assert (await server.post("/login", login_body("alice", "wrong"))).json()["errcode"] == "M_FORBIDDEN"
    await admin.put(path, {"locked": False})
    assert (await alice.get("/account/whoami")).status_code == 200  # the session is still there
    await admin.put(path, {"locked": True})
    assert (await alice.post("/logout")).json() == {}


async def test_a_locked_account_refreshes_nothing(server: Server) -> None:
    admin, alice = await administrator(server), await server.register("alice")
    body = login_body("alice", refresh_token=True)
    tokens = (await server.post("/login", body)).json()
    await admin.put(f"{V1}/admin/lock/{alice.user_id}", {"locked": True})
    refused = await server.post("/refresh", {"refresh_token": tokens["refresh_token"]})
    assert refused.json()["errcode"] == "M_USER_LOCKED"
    await admin.put(f"{V1}/admin/lock/{alice.user_id}", {"locked": False})
    assert "access_token" in (await server.post("/refresh", {"refresh_token": tokens["refresh_token"]})).json()


async def test_a_suspended_account_reads_and_does_not_speak(server: Server) -> None:
    admin, alice = await administrator(server), await server.register("alice")
    path = f"{V1}/admin/suspend/{alice.user_id}"
    assert (await admin.put(path, {"suspended": True})).json() == {"suspended": True}
    assert (await admin.get(path)).json() == {"suspended": True}
    closed = [
        ("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Eve"}),
        ("POST", "/join/!room:test.example", {}),
        ("POST", "/knock/!room:test.example", {}),
        ("POST", "/createRoom", {}),
        ("PUT", "/rooms/!room:test.example/send/m.room.message/1", {"body": "hello"}),
        ("PUT", "/rooms/!room:test.example/state/m.room.name/", {"name": "mine"}),
        ("POST", "/rooms/!room:test.example/invite", {"user_id": "@bob:test.example"}),
    ]
    for method, what, body in closed:
        refused = await alice.request(method, what, body)
        assert (refused.status_code, refused.json()["errcode"]) == (403, "M_USER_SUSPENDED"), what
    assert (await alice.get("/devices")).status_code == 200
    another = await server.login("alice")
    put = await another.put(f"/profile/{alice.user_id}/displayname", {"displayname": "Eve"})
    assert put.json()["errcode"] == "M_USER_SUSPENDED"
    await admin.put(path, {"suspended": False})
    assert (await alice.put(f"/profile/{alice.user_id}/displayname", {"displayname": "Al"})).status_code == 200
    await admin.put(path, {"suspended": True})
    closing = await alice.post("/account/deactivate", {"auth": password_auth(alice.user_id)})
    assert closing.status_code == 200
    assert (await admin.get(path)).status_code == 404


async def test_who_may_moderate_whom(server: Server) -> None:
    admin, alice = await administrator(server), await server.register("alice")
    for what in ("lock", "suspend"):
        for user_id in ("@bob:test.example", alice.user_id):  # nobody learns who exists
            refused = await alice.get(f"{V1}/admin/{what}/{user_id}")
            assert (refused.status_code, refused.json()["errcode"]) == (403, "M_FORBIDDEN")
        assert (await admin.get(f"{V1}/admin/{what}/@bob:test.example")).json()["errcode"] == "M_NOT_FOUND"
        assert (await admin.get(f"{V1}/admin/{what}/@bob:elsewhere.example")).json()["errcode"] == "M_INVALID_PARAM"
        assert (await admin.get(f"{V1}/admin/{what}/{admin.user_id}")).json()["errcode"] == "M_FORBIDDEN"
        assert (await admin.put(f"{V1}/admin/{what}/{alice.user_id}", {})).json()["errcode"] == "M_MISSING_PARAM"
    capabilities = (await admin.get("/capabilities")).json()["capabilities"]
    assert capabilities["m.account_moderation"] == {"lock": True, "suspend": True}
    assert "m.account_moderation" not in (await alice.get("/capabilities")).json()["capabilities"]


async def test_whois_is_for_oneself_and_administrators(server: Server) -> None:
    admin, alice = await administrator(server), await server.register("alice", "PHONE")
    await alice.get("/account/whoami")
    await server.gateway.last_seen.flush()
    own = (await alice.get(f"/admin/whois/{alice.user_id}")).json()
    assert own["user_id"] == alice.user_id
    assert own["devices"]["PHONE"]["sessions"][0]["connections"][0]["ip"] == "192.0.2.7"
    assert (await admin.get(f"/admin/whois/{alice.user_id}")).json()["user_id"] == alice.user_id
    assert (await admin.get(f"/_synapse/admin/v1/whois/{alice.user_id}")).status_code == 200
    assert (await alice.get(f"/admin/whois/{admin.user_id}")).json()["errcode"] == "M_FORBIDDEN"
    assert (await admin.get("/admin/whois/@nobody:test.example")).json()["errcode"] == "M_NOT_FOUND"


_WITH_LOGIN_TOKENS = {"login_via_existing_session": {"enabled": True}}


async def test_a_login_token_logs_in_once(make_server: Make) -> None:
    server = make_server(rates={"rc_login.account": Rate(0.01, 4)}, **_WITH_LOGIN_TOKENS)
    alice = await server.register("alice")
    assert {"type": "m.login.token", "get_login_token": True} in (await server.get("/login")).json()["flows"]
    asked = await alice.post(f"{V1}/login/get_token")
    assert (asked.status_code, asked.json()["flows"]) == (401, [{"stages": ["m.login.password"]}])
    auth = {"auth": password_auth(alice.user_id)}
    made = (await alice.post(f"{V1}/login/get_token", auth)).json()
    assert made["expires_in_ms"] == 120_000
    login = {"type": "m.login.token", "token": made["login_token"], "device_id": "TABLET"}
    reply = await server.post("/login", login)
    assert (reply.json()["user_id"], reply.json()["device_id"]) == (alice.user_id, "TABLET")
    again = await server.post("/login", login)
    assert (again.status_code, again.json()["errcode"]) == (403, "M_FORBIDDEN")
    late = (await alice.post(f"{V1}/login/get_token", auth)).json()["login_token"]
    await server.clock.advance(120.0)
    assert (await server.post("/login", {**login, "token": late})).json()["errcode"] == "M_FORBIDDEN"


async def test_login_tokens_end_with_the_password(make_server: Make) -> None:
    server = make_server(**_WITH_LOGIN_TOKENS)
    alice = await server.register("alice")
    auth = {"auth": password_auth(alice.user_id)}
    token = (await alice.post(f"{V1}/login/get_token", auth)).json()["login_token"]
    await alice.post("/account/password", {"new_password": "another one", **auth})
    refused = await server.post("/login", {"type": "m.login.token", "token": token})
    assert refused.json()["errcode"] == "M_FORBIDDEN"


async def test_login_tokens_are_the_operator_s_choice(server: Server) -> None:
    alice = await server.register("alice")
    assert (await server.get("/login")).json() == {"flows": [{"type": "m.login.password"}]}
    assert (await alice.post(f"{V1}/login/get_token")).status_code == 400
    assert (await server.post("/login", {"type": "m.login.token", "token": "x"})).json()["errcode"] == "M_UNKNOWN"
    capabilities = (await alice.get("/capabilities")).json()["capabilities"]
    assert capabilities["m.get_login_token"] == {"enabled": False}


async def test_an_openid_token_tells_who_one_is_for_an_hour(server: Server) -> None:
    alice = await server.register("alice")
    made = (await alice.post(f"/user/{alice.user_id}/openid/request_token")).json()
    assert (made["token_type"], made["matrix_server_name"], made["expires_in"]) == ("Bearer", "test.example", 3600)
    refused = await alice.post("/user/@bob:test.example/openid/request_token")
    assert refused.json()["errcode"] == "M_FORBIDDEN"
    now_ms = server.clock.now_ms()
    async with server.accounts.reading() as tx:
        assert await find_openid_user(tx, made["access_token"], now_ms) == alice.user_id
        assert await find_openid_user(tx, made["access_token"], now_ms + 3_600_000) is None
        assert await find_openid_user(tx, "tso_guess", now_ms) is None
    whoami = await server.get("/account/whoami", headers={"Authorization": f"Bearer {made['access_token']}"})
    assert whoami.json()["errcode"] == "M_UNKNOWN_TOKEN"

"""Login, refresh, logout, devices: what begins and what ends."""

import asyncio
from collections.abc import Callable

import pytest
from gateway_server import PASSWORD, Server, Session, login_body, password_auth

from services.gateway import stale_devices
from tessera.http.limits import Rate
from tessera.storage import user_log
from tessera.storage.user_log import UserLogKind

Make = Callable[..., Server]


async def _log(server: Server, session: Session) -> list[tuple[int, str]]:
    async with server.accounts.reading() as tx:
        return [(row.kind, row.key) for row in await user_log.list_after(tx, session.user_id, 0)]


async def _assert_dead(session: Session, *, soft: bool = False) -> None:
    response = await session.get("/account/whoami")
    assert response.status_code == 401
    assert response.json()["errcode"] == "M_UNKNOWN_TOKEN"
    assert response.json()["soft_logout"] is soft


async def test_the_flows(server: Server) -> None:
    assert (await server.get("/login")).json() == {"flows": [{"type": "m.login.password"}]}


@pytest.mark.parametrize("name", ["alice", "Alice", "@alice:test.example", "@ALICE:test.example"])
async def test_login_by_localpart_or_full_id(server: Server, name: str) -> None:
    await server.register("alice")
    assert (await server.login(name)).user_id == "@alice:test.example"


async def test_login_by_the_older_field(server: Server) -> None:
    await server.register("alice")
    reply = await server.post("/login", {"type": "m.login.password", "user": "alice", "password": PASSWORD})
    assert reply.json()["user_id"] == "@alice:test.example"


@pytest.mark.parametrize(
    ("change", "status", "errcode"),
    [
        ({"password": "wrong"}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "nobody"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user", "user": "@alice:elsewhere.org"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.thirdparty", "medium": "email", "address": "a@b"}}, 403, "M_FORBIDDEN"),
        ({"identifier": {"type": "m.id.user"}}, 400, "M_MISSING_PARAM"),
        ({"identifier": {"type": "m.id.user", "user": 7}}, 400, "M_BAD_JSON"),
        ({"identifier": {"type": "m.id.user", "user": "@nope"}}, 400, "M_INVALID_PARAM"),
        ({"identifier": {"type": "m.id.strange"}}, 400, "M_INVALID_PARAM"),
        ({"identifier": "alice"}, 400, "M_BAD_JSON"),
        ({"password": 5}, 400, "M_BAD_JSON"),
        ({"password": None}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.magic"}, 400, "M_UNKNOWN"),
        ({"type": None}, 400, "M_MISSING_PARAM"),
    ],
)
async def test_refused_logins(server: Server, change: dict[str, object], status: int, errcode: str) -> None:
    await server.register("alice")
    refused = await server.post("/login", {**login_body("alice"), **change})
    assert (refused.status_code, refused.json()["errcode"]) == (status, errcode)


async def test_login_with_a_known_device_kills_its_old_token_and_keeps_its_name(server: Server) -> None:
    old = await server.register("alice", "PHONE", initial_device_display_name="my phone")
    assert (await old.get("/account/whoami")).status_code == 200
    new = await server.login("alice", "PHONE", initial_device_display_name="ignored")
    await _assert_dead(old)
    devices = (await new.get("/devices")).json()["devices"]
    assert [(device["device_id"], device["display_name"]) for device in devices] == [("PHONE", "my phone")]
    assert await _log(server, new) == [(UserLogKind.SESSION_ENDED, "PHONE")]
    assert [wake.position for wake in server.fanout.user_wakes] == [1]


async def test_wrong_passwords_are_limited_by_account(make_server: Make) -> None:
    server = make_server(rates={"rc_login.failed_attempts": Rate(0.1, 2)})
    await server.register("alice")
    for _ in range(2):
        assert (await server.post("/login", login_body("alice", "wrong"))).status_code == 403
    assert (await server.post("/login", login_body("alice"))).status_code == 429
    server.clock.shift(11)
    assert (await server.post("/login", login_body("alice"))).status_code == 200


async def test_logins_are_limited_by_address(make_server: Make) -> None:
    server = make_server(rates={"rc_login.address": Rate(0.1, 1)})
    await server.register("alice")
    await server.login("alice")
    assert (await server.post("/login", login_body("alice"))).status_code == 429


async def test_logout_deletes_the_device_and_logout_all_every_one(server: Server) -> None:
    first = await server.register("alice", "ONE")
    second = await server.login("alice", "TWO")
    third = await server.login("alice", "THREE")
    assert (await first.post("/logout")).json() == {}
    await _assert_dead(first)
    left = (await second.get("/devices")).json()["devices"]
    assert {device["device_id"] for device in left} == {"TWO", "THREE"}
    assert (await second.post("/logout/all")).json() == {}
    await _assert_dead(second)
    await _assert_dead(third)
    assert await _log(server, first) == [
        (UserLogKind.SESSION_ENDED, "ONE"),
        (UserLogKind.SESSION_ENDED, "THREE"),
        (UserLogKind.SESSION_ENDED, "TWO"),
    ]


async def test_tokens_that_nobody_has(server: Server) -> None:
    missing = await server.get("/account/whoami")
    assert (missing.status_code, missing.json()["errcode"]) == (401, "M_MISSING_TOKEN")
    await _assert_dead(Session(server.client, await _nobody(server), "X", "tsa_guessed"))


async def _nobody(server: Server) -> "object":
    return (await server.register("nobody")).user_id


async def test_whoami_is_one_query_with_a_cold_cache_and_none_with_a_warm_one(server: Server) -> None:
    session = await server.register("alice")
    async with server.accounts.counting() as count:
        await session.get("/account/whoami")
    assert count.statements == 1
    async with server.accounts.counting() as count:
        await session.get("/account/whoami")
    assert count.statements == 0


async def test_refresh_keeps_the_old_token_until_a_new_one_is_used(make_server: Make) -> None:
    server = make_server(refreshable_access_token_lifetime="60s")
    first = await server.post("/login", {**login_body((await server.register("alice")).user_id), "refresh_token": True})
    tokens = first.json()
    assert tokens["expires_in_ms"] == 60_000
    old = server.session(tokens)
    lost = (await server.post("/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    again = (await server.post("/refresh", {"refresh_token": tokens["refresh_token"]})).json()
    assert again["access_token"] != lost["access_token"]
    assert (await old.get("/account/whoami")).status_code == 200
    new = server.session({**tokens, **again})
    assert (await new.get("/account/whoami")).status_code == 200
    await _assert_dead(old)
    used = await server.post("/refresh", {"refresh_token": tokens["refresh_token"]})
    assert (used.status_code, used.json()["errcode"], used.json()["soft_logout"]) == (401, "M_UNKNOWN_TOKEN", False)
    third = await server.post("/refresh", {"refresh_token": again["refresh_token"]})
    assert third.status_code == 200


async def test_a_device_that_refreshes_all_the_time_has_to_wait(make_server: Make) -> None:
    server = make_server(rates={"tessera.rc_refresh": Rate(0.1, 2)})
    await server.register("alice")
    tokens = [
        (await server.post("/login", {**login_body("alice"), "refresh_token": True})).json()["refresh_token"]
        for _ in range(2)
    ]
    answers = [await server.post("/refresh", {"refresh_token": tokens[0]}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert (await server.post("/refresh", {"refresh_token": tokens[1]})).status_code == 200
    server.clock.shift(10)
    assert (await server.post("/refresh", {"refresh_token": tokens[0]})).status_code == 200


async def test_using_the_new_refresh_token_revokes_the_old_one_too(server: Server) -> None:
    reply = (
        await server.post("/login", {**login_body((await server.register("alice")).user_id), "refresh_token": True})
    ).json()
    second = (await server.post("/refresh", {"refresh_token": reply["refresh_token"]})).json()
    assert (await server.post("/refresh", {"refresh_token": second["refresh_token"]})).status_code == 200
    assert (await server.post("/refresh", {"refresh_token": reply["refresh_token"]})).status_code == 401


async def test_an_expired_token_is_a_soft_logout(make_server: Make) -> None:
    server = make_server(nonrefreshable_access_token_lifetime="10m", session_lifetime="5m")
    session = await server.register("alice")
    assert (await session.get("/account/whoami")).status_code == 200
    server.clock.shift(301)
    await _assert_dead(session, soft=True)
    again = await server.login("alice", session.device_id)
    assert (await again.get("/account/whoami")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({}, 400, "M_MISSING_PARAM"),
        ({"refresh_token": 5}, 400, "M_BAD_JSON"),
        ({"refresh_token": "guessed"}, 401, "M_UNKNOWN_TOKEN"),
    ],
)
async def test_bad_refreshes(server: Server, body: dict[str, object], status: int, errcode: str) -> None:
    refused = await server.post("/refresh", body)
    assert (refused.status_code, refused.json()["errcode"]) == (status, errcode)


async def test_a_device_is_renamed_and_seen(server: Server) -> None:
    session = await server.register("alice", "PHONE")
    assert (await session.put("/devices/PHONE", {"display_name": "new"})).json() == {}
    assert (await session.put("/devices/PHONE", {})).json() == {}
    await server.gateway.last_seen.flush()
    assert (await session.get("/devices/PHONE")).json() == {
        "device_id": "PHONE",
        "display_name": "new",
        "last_seen_ip": "192.0.2.7",
        "last_seen_ts": server.clock.now_ms(),
    }
    for method in ("GET", "PUT"):
        missing = await session.request(method, "/devices/OTHER", {"display_name": "x"})
        assert (missing.status_code, missing.json()["errcode"]) == (404, "M_NOT_FOUND")
    assert (await session.put("/devices/PHONE", {"display_name": 5})).json()["errcode"] == "M_BAD_JSON"
    assert (await session.put("/devices/PHONE", {"display_name": "x" * 200})).json()["errcode"] == "M_INVALID_PARAM"


async def test_a_device_was_seen_when_it_logged_in(server: Server) -> None:
    session = await server.register("alice", "PHONE")
    first = server.clock.now_ms()
    server.clock.shift(60)
    await server.login("alice", "LAPTOP")
    server.clock.shift(60)
    await server.login("alice", "PHONE")
    listed = (await (await server.login("alice", "TABLET")).get("/devices")).json()["devices"]
    seen = {device["device_id"]: (device["last_seen_ts"], device["last_seen_ip"]) for device in listed}
    ip = "192.0.2.7"
    assert seen == {"PHONE": (first + 120_000, ip), "LAPTOP": (first + 60_000, ip), "TABLET": (first + 120_000, ip)}
    assert (await session.get("/account/whoami")).status_code == 401


async def test_last_seen_is_one_write_for_many_devices_and_requests(server: Server) -> None:
    sessions = [await server.register(f"user{number}") for number in range(3)]
    for session in sessions * 3:
        await session.get("/account/whoami")
    async with server.accounts.counting() as count:
        assert await server.gateway.last_seen.flush() == 3
        assert await server.gateway.last_seen.flush() == 0
    assert count.statements == 1
    await sessions[0].get("/account/whoami")
    assert await server.gateway.last_seen.flush() == 0
    server.clock.shift(130)
    await sessions[0].get("/account/whoami")
    assert await server.gateway.last_seen.flush() == 1


async def test_deleting_a_device_needs_the_password_and_takes_its_pushers_and_tokens(server: Server) -> None:
    session = await server.register("alice", "ONE")
    other = await server.login("alice", "TWO")
    pusher = {
        "kind": "http",
        "app_id": "app",
        "pushkey": "key",
        "app_display_name": "App",
        "device_display_name": "Two",
        "lang": "en",
        "data": {"url": "https://push.example/_matrix/push/v1/notify"},
    }
    assert (await other.post("/pushers/set", pusher)).json() == {}
    asked = await session.delete("/devices/TWO")
    assert asked.status_code == 401
    assert asked.json()["flows"] == [{"stages": ["m.login.password"]}]
    uia = asked.json()["session"]
    wrong = await session.delete("/devices/TWO", {"auth": password_auth(session.user_id, "wrong", uia)})
    assert (wrong.status_code, wrong.json()["errcode"], wrong.json()["session"]) == (401, "M_FORBIDDEN", uia)
    assert (await other.get("/account/whoami")).status_code == 200
    elsewhere = await session.delete("/devices/ONE", {"auth": {"session": uia}})
    assert elsewhere.status_code == 401
    assert elsewhere.json()["session"] != uia
    done = await session.delete("/devices/TWO", {"auth": password_auth(session.user_id, session=uia)})
    assert (done.status_code, done.json()) == (200, {})
    await _assert_dead(other)
    assert (await session.get("/pushers")).json() == {"pushers": []}
    used_up = await session.delete("/devices/TWO", {"auth": {"session": uia}})
    assert used_up.status_code == 401


async def test_another_user_s_password_does_not_count(server: Server) -> None:
    session = await server.register("alice", "ONE")
    await server.register("mallory", password="evil password")
    auth = password_auth("mallory", "evil password")
    assert (await session.delete("/devices/ONE", {"auth": auth})).status_code == 401
    assert (await session.get("/account/whoami")).status_code == 200


async def test_several_devices_are_deleted_at_once_and_deleting_again_is_no_error(server: Server) -> None:
    session = await server.register("alice", "ONE")
    await server.login("alice", "TWO")
    await server.login("alice", "THREE")
    body = {"devices": ["TWO", "THREE", "NEVER"], "auth": password_auth(session.user_id)}
    assert (await session.post("/delete_devices", body)).json() == {}
    assert (await session.post("/delete_devices", body)).json() == {}
    assert len((await session.get("/devices")).json()["devices"]) == 1
    assert (await session.post("/delete_devices", {"auth": {}})).json()["errcode"] == "M_MISSING_PARAM"
    assert (await session.post("/delete_devices", {"devices": "ONE"})).json()["errcode"] == "M_BAD_JSON"


async def test_an_interactive_session_expires(server: Server) -> None:
    session = await server.register("alice", "ONE")
    uia = (await session.delete("/devices/ONE")).json()["session"]
    server.clock.shift(16 * 60)
    late = await session.delete("/devices/ONE", {"auth": {"session": uia}})
    assert late.status_code == 401
    assert late.json()["session"] != uia


async def test_changing_the_password_ends_the_other_sessions(server: Server) -> None:
    session = await server.register("alice", "ONE")
    other = await server.login("alice", "TWO")
    body = {"new_password": "battery staple", "auth": password_auth(session.user_id)}
    assert (await session.post("/account/password", {"new_password": "battery staple"})).status_code == 401
    assert (await session.post("/account/password", body)).json() == {}
    await _assert_dead(other)
    assert (await session.get("/account/whoami")).status_code == 200
    assert (await server.post("/login", login_body("alice"))).status_code == 403
    kept = await server.login("alice", "THREE", password="battery staple")
    body = {"new_password": "x", "logout_devices": False, "auth": password_auth(session.user_id, "battery staple")}
    assert (await session.post("/account/password", body)).json() == {}
    assert (await kept.get("/account/whoami")).status_code == 200
    assert (await session.post("/account/password", {"new_password": 5})).json()["errcode"] == "M_BAD_JSON"
    missing = await session.post("/account/password", {"auth": password_auth(session.user_id, "x")})
    assert missing.json()["errcode"] == "M_MISSING_PARAM"


async def test_a_deactivated_account_is_closed_for_ever(server: Server) -> None:
    session = await server.register("alice")
    await session.put(f"/user/{session.user_id}/account_data/org.example", {"a": 1})
    assert (await session.post("/account/deactivate", {"erase": True})).status_code == 401
    done = await session.post("/account/deactivate", {"erase": True, "auth": password_auth(session.user_id)})
    assert done.json() == {"id_server_unbind_result": "success"}
    await _assert_dead(session)
    assert (await server.post("/login", login_body("alice"))).status_code == 403
    assert (await server.get("/register/available", params={"username": "alice"})).json()["errcode"] == "M_USER_IN_USE"
    assert (await server.get(f"/profile/{session.user_id}")).json() == {}
    assert await server.accounts.fetchval("SELECT count(*) FROM accounts.account_data") == 0


async def test_devices_that_nobody_uses_are_deleted_where_the_operator_wants_it(make_server: Make) -> None:
    server = make_server(delete_stale_devices_after="30d")
    used = await server.register("alice")
    left_alone = await server.login("alice", "OLD")
    server.clock.shift(29 * 86_400)
    fresh = await server.login("alice", "NEW")
    assert (await used.get("/account/whoami")).status_code == 200
    await server.gateway.last_seen.flush()
    running = asyncio.create_task(stale_devices.run(server.gateway, server.clock))
    await server.clock.advance(2 * 86_400)
    async with asyncio.timeout(10):
        while (await left_alone.get("/account/whoami")).status_code == 200:
            await server.clock.advance(3_600)
    running.cancel()
    kept = {device["device_id"] for device in (await used.get("/devices")).json()["devices"]}
    assert kept == {used.device_id, fresh.device_id}


async def test_all_devices_are_kept_otherwise(server: Server) -> None:
    await asyncio.wait_for(stale_devices.run(server.gateway, server.clock), 1)

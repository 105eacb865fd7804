"""Login by the OAuth 2.0 API: a client, a browser, tokens and their end."""

import asyncio
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import httpx
import pytest
from gateway_server import Server, login_body, password_auth
from oauth_client import METADATA, REDIRECT, VERIFIER, OAuthClient, decide, scope_of, sign_in, task_of
from oidc_provider import Provider, query_of

from services.gateway import oauth_tasks
from services.gateway.oauth_server import (
    AUTHORIZE_PATH,
    DECIDE_PATH,
    DEVICE_CODE,
    LINK_PATH,
    SIGN_IN_PATH,
    network_of,
)
from tessera.clock import FakeClock
from tessera.http.limits import Rate

Make = Callable[..., Server]
ON = {"oauth": {"enabled": True}}


@pytest.fixture
async def server(make_server: Make) -> Server:
    made = make_server(tessera=ON)
    await made.register("alice")
    return made


def link_of(page: httpx.Response) -> str:
    """Where the button of a page leads."""
    (url,) = re.findall(r'class="button" href="([^"]+)"', page.text)
    return unescape(url)


async def test_it_is_off_unless_wanted(make_server: Make) -> None:
    server = make_server()
    for path in ("/_matrix/client/v1/auth_metadata", "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata"):
        reply = await server.get(path)
        assert (reply.status_code, reply.json()["errcode"]) == (404, "M_UNRECOGNIZED")
    for path in ("register", "token", "revoke", "device", "link", "sign-in", "decide", "account/reset"):
        reply = await server.client.post(f"/_synapse/client/oauth2/{path}", data={})
        assert (reply.status_code, reply.json()["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_the_whole_way(server: Server, browsers: Any) -> None:
    client, browser = await OAuthClient.registered(server), browsers(server)
    page = await browser.step(AUTHORIZE_PATH, **client.request())
    assert page.status_code == 200
    assert "<strong>An app</strong> (<strong>example.org</strong>)" in page.text
    assert "form-action 'self' https:;" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    cookie = page.headers["Set-Cookie"].lower()
    assert all(part in cookie for part in ("__host-", "httponly", "secure", "samesite=lax"))
    consent = await sign_in(browser, page, "alice")
    assert "@alice:test.example" in consent.text
    assert "app.example.org" in consent.text
    assert task_of(consent) != task_of(page)
    back = await decide(browser, consent)
    assert back.status_code == 303
    assert back.headers["Location"].startswith(f"{REDIRECT}?")
    answer = query_of(back.headers["Location"])
    assert answer == {"code": answer["code"], "state": "the state", "iss": "https://test.example/"}

    reply = await client.redeem(answer["code"])
    assert reply.headers["Cache-Control"] == "no-store"
    tokens = reply.json()
    assert (tokens["token_type"], tokens["expires_in"], tokens["scope"]) == ("Bearer", 300, scope_of("ABCDEFGHIJ"))
    who = (await client.whoami(tokens["access_token"])).json()
    assert (who["user_id"], who["device_id"]) == ("@alice:test.example", "ABCDEFGHIJ")
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    device = (await server.get("/devices/ABCDEFGHIJ", headers=headers)).json()
    assert device["display_name"] == "An app"


async def test_refresh_and_its_repetition(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    first = await client.tokens(browsers(server), "alice")
    await server.clock.advance(301)
    assert (await client.whoami(first["access_token"])).json()["soft_logout"] is True
    lost = await client.token(grant_type="refresh_token", refresh_token=first["refresh_token"])
    again = await client.token(grant_type="refresh_token", refresh_token=first["refresh_token"])
    second = again.json()
    assert lost.status_code == again.status_code == 200
    assert second["scope"] == scope_of("ABCDEFGHIJ")
    assert (await client.whoami(second["access_token"])).status_code == 200
    # Now that the new one is used the old one is nobody's any longer.
    used = await client.token(grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert (used.status_code, used.json()["error"]) == (400, "invalid_grant")


async def test_anothers_refresh_token_is_nothing_to_a_client(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    other = await OAuthClient.registered(server, client_name="Another")
    assert other.client_id != client.client_id
    tokens = await client.tokens(browsers(server), "alice")
    reply = await other.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert reply.json()["error"] == "invalid_grant"
    legacy = await server.post("/refresh", {"refresh_token": tokens["refresh_token"]})
    assert legacy.json()["errcode"] == "M_UNKNOWN_TOKEN"
    password = (await server.post("/login", login_body("alice", refresh_token=True))).json()
    reply = await client.token(grant_type="refresh_token", refresh_token=password["refresh_token"])
    assert reply.json()["error"] == "invalid_grant"
    assert (await server.post("/refresh", {"refresh_token": password["refresh_token"]})).status_code == 200
    assert (await client.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])).status_code == 200


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revoking_either_token_ends_the_session(server: Server, browsers: Any, kind: str) -> None:
    client = await OAuthClient.registered(server)
    tokens = await client.tokens(browsers(server), "alice")
    form = {"token": tokens[kind], "token_type_hint": kind, "client_id": client.client_id}
    for _ in range(2):
        assert (await client.post("revocation_endpoint", data=form)).status_code == 200
    reply = await client.whoami(tokens["access_token"])
    assert (reply.status_code, reply.json().get("soft_logout")) == (401, False)
    refused = await client.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert refused.json()["error"] == "invalid_grant"
    assert (await client.post("revocation_endpoint", data={})).json()["error"] == "invalid_request"


async def test_a_code_used_twice_ends_what_it_gave(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    code = await client.code(browsers(server), "alice")
    tokens = (await client.redeem(code)).json()
    assert (await client.redeem(code)).json()["error"] == "invalid_grant"
    assert (await client.whoami(tokens["access_token"])).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": "w" * 43},
        {"code_verifier": "v" * 42},
        {"redirect_uri": REDIRECT + "/"},
        {"code": "tsc_unknown"},
        {"client_id": "other"},
    ],
)
async def test_a_code_is_good_for_its_own_client_alone(server: Server, browsers: Any, changes: dict[str, str]) -> None:
    client = await OAuthClient.registered(server)
    code = await client.code(browsers(server), "alice")
    if "client_id" in changes:
        changes = {"client_id": (await OAuthClient.registered(server, client_name="Another")).client_id}
    form = {"code": code, "redirect_uri": REDIRECT, "code_verifier": VERIFIER, **changes}
    reply = await client.token(grant_type="authorization_code", **form)
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_grant")


async def test_a_code_ends_soon(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    code = await client.code(browsers(server), "alice")
    await server.clock.advance(61)
    assert (await client.redeem(code)).json()["error"] == "invalid_grant"


async def test_what_is_missing_or_unknown_at_the_token_endpoint(server: Server) -> None:
    client = await OAuthClient.registered(server)
    for form, error, status in (
        ({}, "invalid_request", 400),
        ({"grant_type": "password"}, "unsupported_grant_type", 400),
        ({"grant_type": "authorization_code"}, "invalid_request", 400),
        ({"grant_type": "authorization_code", "client_id": "nobody"}, "invalid_client", 401),
        ({"grant_type": "refresh_token", "refresh_token": "tsr_unknown"}, "invalid_grant", 400),
        ({"grant_type": "refresh_token", "refresh_token": "x" * 5_000}, "invalid_request", 400),
    ):
        reply = await client.token(**form)
        assert (reply.status_code, reply.json()["error"]) == (status, error)


async def test_a_client_that_is_not_registered_gets_nobody(server: Server, browsers: Any) -> None:
    client, browser = await OAuthClient.registered(server), browsers(server)
    for changes in ({"client_id": "x"}, {"client_id": ""}, {"redirect_uri": "https://evil.example/"}):
        page = await browser.step(AUTHORIZE_PATH, **client.request(**changes))
        assert page.status_code == 400
        assert "Location" not in page.headers


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_mode": "form_post"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": ""}, "invalid_scope"),
        ({"scope": "urn:matrix:client:api:*"}, "invalid_scope"),
        ({"scope": "urn:matrix:client:device:ABCDEFGHIJ"}, "invalid_scope"),
        ({"scope": scope_of("ABCDEFGHIJ") + " urn:matrix:client:device:KLMNOPQRST"}, "invalid_scope"),
        ({"scope": scope_of("short")}, "invalid_scope"),
        ({"scope": scope_of("<ABCDEFGHIJ>")}, "invalid_scope"),
        ({"prompt": "none"}, "login_required"),
        ({"prompt": "x" * 5_000, "scope": "\x01"}, "invalid_scope"),
        ({"request": "x.y.z"}, "request_not_supported"),
    ],
)
async def test_what_a_client_cannot_ask_for_it_is_told(
    server: Server, browsers: Any, changes: dict[str, str], error: str
) -> None:
    client = await OAuthClient.registered(server)
    back = await browsers(server).step(AUTHORIZE_PATH, **client.request(**changes))
    url = link_of(back)  # not followed at once: anybody can register a client
    answer = query_of(url)
    assert (back.status_code, answer["error"], answer["state"]) == (400, error, "the state")
    assert answer["iss"] == "https://test.example/"
    assert url.startswith(f"{REDIRECT}?")


@pytest.mark.parametrize("state", ["a\x01b", "ß", "x" * 2_049])
async def test_a_state_that_is_none_is_not_told_back(server: Server, browsers: Any, state: str) -> None:
    client = await OAuthClient.registered(server)
    back = await browsers(server).step(AUTHORIZE_PATH, **client.request(state=state))
    answer = query_of(link_of(back))
    assert (answer["error"], "state" in answer) == ("invalid_request", False)


async def test_the_names_of_before_the_specification_and_what_means_nothing(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    old = "urn:matrix:org.matrix.msc2967.client:"
    code = await client.code(browsers(server), "alice", scope=f"openid {old}api:* {old}device:KLMNOPQRST email")
    tokens = (await client.redeem(code)).json()
    assert tokens["scope"] == f"{old}api:* {old}device:KLMNOPQRST"
    assert (await client.whoami(tokens["access_token"])).json()["device_id"] == "KLMNOPQRST"


async def test_a_refusal_and_the_fragment(server: Server, browsers: Any) -> None:
    client, browser = await OAuthClient.registered(server), browsers(server)
    page = await browser.step(AUTHORIZE_PATH, **client.request(response_mode="fragment"))
    back = await decide(browser, page, "deny")  # before anybody signed in
    base, _, fragment = back.headers["Location"].partition("#")
    assert base == REDIRECT
    assert query_of(f"?{fragment}")["error"] == "access_denied"
    assert "has ended" in (await decide(browser, page, "deny")).text
    page = await browser.step(AUTHORIZE_PATH, **client.request())
    page = await sign_in(browser, page, "alice")
    assert query_of((await decide(browser, page, "deny")).headers["Location"])["error"] == "access_denied"


async def test_a_page_is_good_for_its_browser_and_its_time(server: Server, browsers: Any) -> None:
    client, browser, stranger = await OAuthClient.registered(server), browsers(server), browsers(server)
    page = await browser.step(AUTHORIZE_PATH, **client.request())
    await stranger.step(AUTHORIZE_PATH, **client.request())
    assert "has ended" in (await sign_in(stranger, page, "alice")).text
    assert "has ended" in (await decide(browser, page)).text  # nobody has signed in
    consent = await sign_in(browser, page, "alice")
    assert "has ended" in (await decide(stranger, consent)).text
    assert "has ended" in (await sign_in(browser, page, "alice")).text  # it has another name now
    assert "has ended" in (await sign_in(browser, consent, "alice")).text  # and somebody in it
    await server.clock.advance(15 * 60)
    assert "has ended" in (await decide(browser, consent)).text
    for task in ("", "x", "x" * 43):
        assert (await browser.post(SIGN_IN_PATH, {"task": task})).status_code == 400
        assert (await browser.post(DECIDE_PATH, {"task": task})).status_code == 400


async def test_who_cannot_sign_in(make_server: Make, browsers: Any) -> None:
    rates = {"rc_login.failed_attempts": Rate(per_second=0.01, burst_count=3)}
    server = make_server(rates, tessera=ON)
    await server.register("alice")
    await server.register("locked")
    await server.accounts.execute("UPDATE accounts.users SET locked = true WHERE user_id = '@locked:test.example'")
    client, browser = await OAuthClient.registered(server), browsers(server)
    page = await browser.step(AUTHORIZE_PATH, **client.request())
    for user in ("nobody", "", "@alice:elsewhere.example", "a b", "x@example.org", "@@", "a\0b", "a\0@b.org", "\u202e"):
        refused = await sign_in(browser, page, user)
        assert refused.status_code == 403
        assert "do not fit together" in refused.text
    locked = await sign_in(browser, page, "locked")
    assert "has been locked" in locked.text
    answers = [(await sign_in(browser, page, "alice", "wrong")).status_code for _ in range(4)]
    assert answers == [403, 403, 403, 429]


async def test_a_page_shows_names_as_text(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server, client_name="<script>alert(1)</script>")
    page = await browsers(server).step(AUTHORIZE_PATH, **client.request())
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert" in page.text


async def test_signing_in_with_a_provider(make_server: Make, browsers: Any) -> None:
    provider = Provider(FakeClock())
    await provider.start()
    try:
        server = make_server(oidc_providers=[provider.settings()], tessera=ON)
        client, browser, stranger = await OAuthClient.registered(server), browsers(server), browsers(server)
        page = await browser.step(AUTHORIZE_PATH, **client.request())
        assert "Sign in with Example staff" in page.text
        back = f"https://test.example/_synapse/client/oauth2/signed-in?task={task_of(page)}"
        # A link that somebody else made: it leads into their page, and this browser has none of that name.
        stolen = await stranger.open("/_matrix/client/v3/login/sso/redirect/oidc-staff", redirectUrl=back)
        assert "has ended" in stolen.text
        consent = await browser.open("/_matrix/client/v3/login/sso/redirect/oidc-staff", redirectUrl=back)
        assert "@ann:test.example" in consent.text
        code = query_of((await decide(browser, consent)).headers["Location"])["code"]
        tokens = (await client.redeem(code)).json()
        assert (await client.whoami(tokens["access_token"])).json()["user_id"] == "@ann:test.example"
    finally:
        await provider.close()


async def test_only_that_one_page_of_ours_gets_a_login_token_unasked(make_server: Make, browsers: Any) -> None:
    provider = Provider(FakeClock())
    await provider.start()
    try:
        own = "https://test.example/_synapse/client/oauth2/signed-in"
        for enabled, url in ((True, f"{own}/../../../../x"), (True, own), (False, f"{own}?task=x")):
            server = make_server(oidc_providers=[provider.settings()], tessera={"oauth": {"enabled": enabled}})
            page = await browsers(server).open("/_matrix/client/v3/login/sso/redirect/oidc-staff", redirectUrl=url)
            assert "Continue to <strong>test.example</strong>?" in page.text
    finally:
        await provider.close()


async def test_what_was_begun_with_an_old_password_ends_with_it(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    waiting, deciding = browsers(server), browsers(server)
    form = {"client_id": client.client_id, "scope": scope_of("KLMNOPQRST")}
    begun = (await client.post("device_authorization_endpoint", data=form)).json()
    page = await waiting.post(LINK_PATH, {"user_code": begun["user_code"]})  # without the page, nothing
    assert "Never type in a code" in page.text
    page = await waiting.post(LINK_PATH, {"user_code": begun["user_code"]})
    await decide(waiting, await sign_in(waiting, page, "alice"))
    code = await client.code(deciding, "alice")
    consent = await sign_in(deciding, await deciding.step(AUTHORIZE_PATH, **client.request()), "alice")

    alice = await server.login("alice")
    change = {"new_password": "another horse", "auth": password_auth(alice.user_id)}
    assert (await alice.post("/account/password", change)).status_code == 200
    assert (await client.redeem(code)).json()["error"] == "invalid_grant"
    reply = await client.token(grant_type=DEVICE_CODE, device_code=begun["device_code"])
    assert reply.json()["error"] == "invalid_grant"
    assert "has ended" in (await decide(deciding, consent)).text

    code = await client.code(deciding, "alice", password="another horse")
    assert (await alice.post("/logout/all")).status_code == 200
    assert (await client.redeem(code)).json()["error"] == "invalid_grant"


async def test_of_two_that_redeem_a_code_at_once_neither_keeps_a_session(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    code = await client.code(browsers(server), "alice")
    replies = await asyncio.gather(client.redeem(code), client.redeem(code))
    assert sorted(reply.status_code for reply in replies) == [200, 400]
    (token,) = [reply.json()["access_token"] for reply in replies if reply.status_code == 200]
    assert (await client.whoami(token)).status_code == 401


async def test_a_client_that_asks_too_often_is_not_logged_out(make_server: Make, browsers: Any) -> None:
    server = make_server({"tessera.rc_refresh": Rate(per_second=0.01, burst_count=1)}, tessera=ON)
    await server.register("alice")
    client = await OAuthClient.registered(server)
    token = (await client.tokens(browsers(server), "alice"))["refresh_token"]
    replies = [await client.token(grant_type="refresh_token", refresh_token=token) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 503]
    assert replies[1].json()["retry_after_ms"] > 0


async def test_a_parameter_is_not_there_twice(server: Server) -> None:
    client = await OAuthClient.registered(server)
    for endpoint in ("token_endpoint", "revocation_endpoint", "device_authorization_endpoint"):
        for content in (b"client_id=a&client_id=b", b"\xff"):
            reply = await client.post(endpoint, content=content)
            assert (reply.status_code, reply.json()["error"]) == (400, "invalid_request")


async def test_where_too_many_pages_are_open_the_oldest_make_room(
    server: Server, browsers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth_tasks, "MAX_TASKS", 2)
    client, first, last = await OAuthClient.registered(server), browsers(server), browsers(server)
    page = await sign_in(first, await first.step(AUTHORIZE_PATH, **client.request()), "alice")
    pages = [await last.step(AUTHORIZE_PATH, **client.request()) for _ in range(3)]
    assert [one.status_code for one in pages] == [200, 200, 200]
    assert "has ended" in (await sign_in(last, pages[0], "alice")).text
    assert (await sign_in(last, pages[2], "alice")).status_code == 200
    assert (await decide(first, page)).status_code == 303  # somebody has signed in there
    second = await sign_in(first, await first.step(AUTHORIZE_PATH, **client.request()), "alice")
    assert (await first.step(AUTHORIZE_PATH, **client.request())).status_code == 503
    assert (await decide(first, second)).status_code == 303


def test_ipv6_addresses_of_one_network_count_together() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert (network_of("192.0.2.7"), network_of("")) == ("192.0.2.7", "")


async def test_a_device_is_free_for_the_other_api_again(server: Server, browsers: Any) -> None:
    client = await OAuthClient.registered(server)
    tokens = await client.tokens(browsers(server), "alice")
    await server.login("alice", device_id="ABCDEFGHIJ")
    assert (await client.whoami(tokens["access_token"])).status_code == 401
    refused = await client.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert refused.json()["error"] == "invalid_grant"


async def test_too_many_pages_from_one_address(make_server: Make, browsers: Any) -> None:
    server = make_server({"tessera.oauth.rc_address": Rate(per_second=0.01, burst_count=3)}, tessera=ON)
    client, browser = await OAuthClient.registered(server), browsers(server)
    answers = [(await browser.step(AUTHORIZE_PATH, **client.request())).status_code for _ in range(3)]
    assert answers == [200, 200, 429]
    assert (await client.post("registration_endpoint", json=METADATA)).status_code == 429

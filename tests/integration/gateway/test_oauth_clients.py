"""Clients register, devices without browsers are linked, people look after their accounts: the OAuth 2.0 API."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway_server import PASSWORD, Server
from oauth_client import METADATA, OAuthClient, decide, scope_of, sign_in, task_of

from matrixcore.signing import SigningKey, encode_base64
from services.gateway import oauth_clients as clients_module
from services.gateway.oauth_clients import is_registered, parse_metadata
from services.gateway.oauth_server import (
    ACCOUNT_PATH,
    CLOSE_PATH,
    DECIDE_PATH,
    LINK_PATH,
    RESET_PATH,
    SIGN_OUT_PATH,
    OAuthError,
)
from services.gateway.oauth_tokens import DEVICE_GRANT_MS, POLL_SECONDS, parse_user_code
from tessera.storage import oauth_clients

Make = Callable[..., Server]
ON = {"oauth": {"enabled": True}}
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture
async def server(make_server: Make) -> Server:
    made = make_server(tessera=ON)
    await made.register("alice")
    return made


def answer_to(url: str, application_type: str) -> str:
    try:
        parse_metadata(METADATA | {"redirect_uris": [url], "application_type": application_type})
    except OAuthError as error:
        return error.error
    return "good"


@pytest.mark.parametrize(
    ("url", "web", "native"),
    [
        ("https://example.org/callback", True, True),
        ("https://app.example.org/callback", True, True),
        ("https://example.org:5173/?query=value", True, True),
        ("https://example.org/callback#fragment", False, False),
        ("https://example.org/callback#", False, False),
        ("http://example.org/callback", False, False),
        ("https://user@example.org/", False, False),
        ("https://evilexample.org/", False, False),
        ("https://example.org.evil.org/", False, False),
        ("https://localhost/callback", False, False),
        ("https://exam\\ple.org/", False, False),
        ("https://evil.org\\.example.org/", False, False),
        ("https://a.example.org;script-src/", False, False),
        ("https://a b.example.org/", False, False),
        ("https://example.org:port/", False, False),
        ("HTTPS://example.org/", False, False),
        ("https://example.org:/callback", False, False),
        ("https://[v1.example.org]/callback", False, False),
        ("javascript:alert(1)", False, False),
        ("org.example.app:/callback", False, True),
        ("org.example:/", False, True),
        ("org.example:callback", False, True),
        ("org.example.app://callback", False, False),
        ("org.exampleapp:/callback", False, False),
        ("example:/callback", False, False),
        ("http://localhost/callback", False, True),
        ("http://127.0.0.1/callback", False, True),
        ("http://[::1]/callback", False, True),
        ("http://localhost:1234/callback", False, False),
        ("http://localhost.evil.org/", False, False),
        ("", False, False),
    ],
)
def test_redirect_uris(url: str, *, web: bool, native: bool) -> None:
    expected = tuple("good" if is_good else "invalid_redirect_uri" for is_good in (web, native))
    assert (answer_to(url, "web"), answer_to(url, "native")) == expected


@pytest.mark.parametrize("home", ["https://javascript/", "https://ms-msdt/", "https://data/"])
def test_a_scheme_without_a_dot_is_the_systems(home: str) -> None:
    body = METADATA | {"client_uri": home, "application_type": "native"}
    with pytest.raises(OAuthError, match="scheme"):
        parse_metadata(body | {"redirect_uris": [f"{urlsplit(home).hostname}:alert(1)"]})


def test_any_port_of_this_machine_and_nothing_else_by_half() -> None:
    client = {"redirect_uris": ["http://localhost/back", "http://[::1]/back", "https://example.org/back"]}
    for url in ("http://localhost/back", "http://localhost:5173/back", "http://[::1]:80/back"):
        assert is_registered(url, client)
    for url in (
        "http://localhost:5173/other",
        "http://localhost:/back",
        "http://127.0.0.1:5173/back",
        "http://user@localhost:5173/back",
        "https://localhost:5173/back",
        "https://example.org:443/back",
        "https://example.org/back?x=1",
        "http://localhost:99999/back",
        "",
    ):
        assert not is_registered(url, client)


async def test_what_is_registered_and_what_is_not(server: Server) -> None:
    client = await OAuthClient.registered(server)
    body = METADATA | {
        "client_name#fr": "Une app",
        "contacts": ["a@example.org"],
        "tos_uri": "https://example.org/tos",
        "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"],
        "response_types": ["code", "token"],
    }
    reply = await client.post("registration_endpoint", json=body)
    answer = reply.json()
    assert reply.status_code == 201
    assert answer.pop("client_id").isalpha()
    assert answer == {
        "client_name": "An app",
        "client_uri": "https://example.org/",
        "tos_uri": "https://example.org/tos",
        "application_type": "web",
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "redirect_uris": METADATA["redirect_uris"],
    }
    again = await OAuthClient.registered(server)
    assert again.client_id == client.client_id  # equal ones are one


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client_uri": None}, "invalid_client_metadata"),
        ({"client_uri": "http://example.org/"}, "invalid_client_metadata"),
        ({"client_uri": 7}, "invalid_client_metadata"),
        ({"client_name": "x" * 101}, "invalid_client_metadata"),
        ({"client_name": "a\u202eb"}, "invalid_client_metadata"),
        ({"logo_uri": "https://elsewhere.org/logo.png"}, "invalid_client_metadata"),
        ({"application_type": "both"}, "invalid_client_metadata"),
        ({"grant_types": "authorization_code"}, "invalid_client_metadata"),
        ({"redirect_uris": [7]}, "invalid_client_metadata"),
        ({"redirect_uris": [f"https://example.org/{number}" for number in range(11)]}, "invalid_client_metadata"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": ["https://elsewhere.org/"]}, "invalid_redirect_uri"),
    ],
)
async def test_metadata_that_is_refused(server: Server, changes: dict[str, Any], error: str) -> None:
    reply = await (await OAuthClient.registered(server)).post("registration_endpoint", json=METADATA | changes)
    assert (reply.status_code, reply.json()["error"]) == (400, error)


async def test_clients_without_sessions_are_forgotten_in_time(server: Server, browsers: Any) -> None:
    used, unused = await OAuthClient.registered(server), await OAuthClient.registered(server, client_name="Unused")
    await used.tokens(browsers(server), "alice")
    await server.clock.advance(oauth_clients.UNUSED_MS / 1000 + 1)
    await OAuthClient.registered(server, client_name="Newest")
    rows = await server.accounts.fetch("SELECT client_id FROM accounts.oauth_clients")
    known = {row[0] for row in rows}
    assert used.client_id in known
    assert unused.client_id not in known


async def test_where_it_is_full_the_client_used_least_lately_makes_room(
    server: Server, browsers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = await OAuthClient.registered(server)
    await used.tokens(browsers(server), "alice")
    monkeypatch.setattr(clients_module, "MAX_CLIENTS", 2)
    for name in ("First", "Second"):
        await server.clock.advance(1)
        await OAuthClient.registered(server, client_name=name)
    names = await server.accounts.fetch("SELECT metadata->>'client_name' FROM accounts.oauth_clients")
    assert {row[0] for row in names} == {"An app", "Second"}
    monkeypatch.setattr(clients_module, "MAX_CLIENTS", 1)
    await server.accounts.execute("DELETE FROM accounts.oauth_clients WHERE client_id <> $1", used.client_id)
    reply = await used.post("registration_endpoint", json=METADATA | {"client_name": "Third"})
    assert reply.status_code == 503
    assert (await OAuthClient.registered(server)).client_id == used.client_id


async def test_a_device_is_linked(server: Server, browsers: Any) -> None:
    client, browser = (
        await OAuthClient.registered(server, redirect_uris=[], grant_types=[DEVICE_CODE]),
        browsers(server),
    )
    form = {"client_id": client.client_id, "scope": scope_of("ABCDEFGHIJ")}
    begun = (await client.post("device_authorization_endpoint", data=form)).json()
    assert begun["verification_uri_complete"] == f"{begun['verification_uri']}?user_code={begun['user_code']}"
    assert (begun["interval"], begun["expires_in"]) == (POLL_SECONDS, DEVICE_GRANT_MS // 1000)

    async def poll() -> dict[str, Any]:
        reply = await client.token(grant_type=DEVICE_CODE, device_code=begun["device_code"])
        found: dict[str, Any] = reply.json()
        return found

    assert (await poll())["error"] == "authorization_pending"
    assert (await poll())["error"] == "slow_down"
    await server.clock.advance(POLL_SECONDS)
    assert (await poll())["error"] == "authorization_pending"

    page = await browser.step(LINK_PATH, user_code=begun["user_code"].lower())
    assert f'value="{begun["user_code"]}"' in page.text
    page = await browser.post(LINK_PATH, {"user_code": begun["user_code"].replace("-", " ")})
    consent = await sign_in(browser, page, "alice")
    assert f"<strong>{begun['user_code']}</strong>" in consent.text
    assert "Your device goes on" in (await decide(browser, consent)).text
    tokens = await poll()
    assert (await client.whoami(tokens["access_token"])).json()["device_id"] == "ABCDEFGHIJ"
    assert tokens["scope"] == scope_of("ABCDEFGHIJ")
    assert (await poll())["error"] == "invalid_grant"  # it is told once
    assert (await browser.post(LINK_PATH, {"user_code": begun["user_code"]})).status_code == 404


async def test_a_device_that_is_not_wanted_or_too_late(server: Server, browsers: Any) -> None:
    client, browser = await OAuthClient.registered(server), browsers(server)
    other = await OAuthClient.registered(server, client_name="Another")
    form = {"client_id": client.client_id, "scope": scope_of("ABCDEFGHIJ")}
    denied, late = [(await client.post("device_authorization_endpoint", data=form)).json() for _ in range(2)]
    await browser.step(LINK_PATH)
    page = await browser.post(LINK_PATH, {"user_code": denied["user_code"]})
    assert "gets nothing" in (await decide(browser, await sign_in(browser, page, "alice"), "deny")).text

    async def error_of(begun: dict[str, Any], client: OAuthClient = client) -> str:
        reply = await client.token(grant_type=DEVICE_CODE, device_code=begun["device_code"])
        assert reply.status_code == 400
        error: str = reply.json()["error"]
        return error

    assert await error_of(denied, other) == "invalid_grant"
    assert await error_of(denied) == "access_denied"
    page = await browser.post(LINK_PATH, {"user_code": late["user_code"]})
    consent = await sign_in(browser, page, "alice")
    await server.clock.advance(DEVICE_GRANT_MS / 1000)
    assert "has ended" in (await decide(browser, consent)).text
    assert await error_of(late) == "expired_token"
    for code in ("", "XXXX-XXXX", "AEIO-UAEI", "x" * 5_000):
        assert (await browser.post(LINK_PATH, {"user_code": code})).status_code == 404


async def test_who_may_not_ask_for_a_device(server: Server) -> None:
    client = await OAuthClient.registered(server, grant_types=["authorization_code", "refresh_token"])
    for form, error in (
        ({"scope": scope_of("ABCDEFGHIJ"), "client_id": "nobody"}, "invalid_client"),
        ({"scope": scope_of("ABCDEFGHIJ"), "client_id": client.client_id}, "unauthorized_client"),
    ):
        assert (await client.post("device_authorization_endpoint", data=form)).json()["error"] == error
    able = await OAuthClient.registered(server)
    reply = await able.post("device_authorization_endpoint", data={"client_id": able.client_id, "scope": "x"})
    assert reply.json()["error"] == "invalid_scope"


def test_user_codes_as_people_type_them() -> None:
    assert parse_user_code(" wdjb-mjht ") == parse_user_code("WDJBMJHT") == "WDJBMJHT"
    assert parse_user_code("WDJB-MJH") is parse_user_code("WDJB-MJHA") is parse_user_code("WDJB-MJHTX") is None


async def test_devices_on_the_accounts_page(server: Server, browsers: Any) -> None:
    client, browser, stranger = await OAuthClient.registered(server), browsers(server), browsers(server)
    tokens = await client.tokens(browser, "alice")
    assert client.metadata["account_management_uri"].endswith(ACCOUNT_PATH)
    page = await browser.step(ACCOUNT_PATH, action="org.matrix.device_delete", device_id="ABCDEFGHIJ")
    form = {"task": task_of(page), "device_id": "ABCDEFGHIJ"}
    assert "has ended" in (await browser.post(SIGN_OUT_PATH, form)).text  # nobody has signed in
    page = await sign_in(browser, page, "alice")
    assert page.text.index("Sign out ABCDEFGHIJ") == page.text.index("Sign out ")  # it comes first
    form["task"] = task_of(page)
    assert "has ended" in (await stranger.post(SIGN_OUT_PATH, form)).text
    assert (await client.whoami(tokens["access_token"])).status_code == 200
    for nonsense in ("", "a\0b", "x" * 300, "UNKNOWN"):
        page = await browser.post(SIGN_OUT_PATH, {**form, "device_id": nonsense})
        assert "Sign out ABCDEFGHIJ" in page.text
    page = await browser.post(SIGN_OUT_PATH, form)
    assert "Sign out ABCDEFGHIJ" not in page.text
    assert (await client.whoami(tokens["access_token"])).status_code == 401


async def test_an_account_is_closed_on_its_page(server: Server, browsers: Any) -> None:
    client, browser = await OAuthClient.registered(server), browsers(server)
    tokens = await client.tokens(browser, "alice")
    assert "org.matrix.account_deactivate" in client.metadata["account_management_actions_supported"]
    page = await browser.step(ACCOUNT_PATH, action="org.matrix.account_deactivate")
    for path in (CLOSE_PATH, RESET_PATH, SIGN_OUT_PATH):
        assert "has ended" in (await browser.post(path, {"task": task_of(page)})).text
    page = await sign_in(browser, page, "alice")
    assert "for ever" in page.text
    for path in (RESET_PATH, SIGN_OUT_PATH, DECIDE_PATH):
        form = {"task": task_of(page), "decision": "allow"}
        assert "has ended" in (await browser.post(path, form)).text
    assert (await client.whoami(tokens["access_token"])).status_code == 200
    assert "has been closed" in (await browser.post(CLOSE_PATH, {"task": task_of(page)})).text
    assert (await client.whoami(tokens["access_token"])).status_code == 401
    page = await browser.step(ACCOUNT_PATH)
    assert "do not fit together" in (await sign_in(browser, page, "alice")).text


def master_key(user_id: str, key: SigningKey) -> dict[str, Any]:
    public = encode_base64(key.public_key)
    return {"user_id": user_id, "usage": ["master"], "keys": {f"ed25519:{public}": public}}


@pytest.mark.parametrize("repeats", [False, True])
async def test_new_cross_signing_keys_are_confirmed_on_a_page(server: Server, browsers: Any, *, repeats: bool) -> None:
    await server.register("bob")
    client, browser = await OAuthClient.registered(server), browsers(server)
    tokens = await client.tokens(browser, "alice")
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    first, second = (SigningKey("k", bytes([number]) * 32) for number in (1, 2))

    async def upload(key: SigningKey, auth: Any = None) -> Any:
        body = {"master_key": master_key("@alice:test.example", key)}
        return await server.post(
            "/keys/device_signing/upload", body if auth is None else {**body, "auth": auth}, headers=headers
        )

    assert (await upload(first)).status_code == 200
    asked = await upload(second)
    body = asked.json()
    assert asked.status_code == 401
    assert body["flows"] == [{"stages": ["m.oauth"]}, {"stages": ["org.matrix.cross_signing_reset"]}]
    again = (await upload(second)).json()
    assert again["session"] == body["session"]  # some clients ask without a session until it is done
    assert again["params"]["org.matrix.cross_signing_reset"] == body["params"]["m.oauth"]
    url = body["params"]["m.oauth"]["url"]
    assert url.startswith(f"https://test.example{ACCOUNT_PATH}?action=org.matrix.cross_signing_reset")
    auth = {"session": body["session"]}
    for tried in (auth, {**auth, "type": "m.oauth"}, {**auth, "type": "m.login.password", "password": PASSWORD}):
        assert (await upload(second, tried)).status_code == 401

    page = await browser.step(url)
    other = await sign_in(browser, page, "bob")
    assert "This is about @alice:test.example" in other.text
    page = await browser.step(url)
    form = {"task": task_of(page)}
    assert "has ended" in (await browser.post(RESET_PATH, form)).text  # nobody has signed in
    confirm = await sign_in(browser, page, "alice")
    assert (await upload(second, auth)).status_code == 401
    form = {"task": task_of(confirm)}
    assert "Your app goes on" in (await browser.post(RESET_PATH, form)).text
    assert (await upload(second, None if repeats else auth)).status_code == 200
    assert "has ended" in (await browser.post(RESET_PATH, form)).text
    assert (await upload(first)).status_code == 401
    assert (await browser.step(url)).status_code == 404
    # A client of the legacy API is asked for the password, as before.
    legacy = await server.login("alice")
    flows = (await legacy.post("/keys/device_signing/upload", {"master_key": master_key(legacy.user_id, first)})).json()
    assert flows["flows"] == [{"stages": ["m.login.password"]}]


async def test_other_accounts_sessions_and_operations_are_no_business_of_the_reset_page(
    server: Server, browsers: Any
) -> None:
    alice = await server.login("alice")
    session = (await alice.post("/delete_devices", {"devices": ["X"]})).json()["session"]
    for name in (session, "unknown", ""):
        page = await browsers(server).step(ACCOUNT_PATH, action="org.matrix.cross_signing_reset", session=name)
        assert page.status_code == 404

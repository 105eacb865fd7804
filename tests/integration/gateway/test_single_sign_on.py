"""Login by single sign-on, with a provider, a browser that has cookies, and a client at its end."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from html import unescape
from typing import Any

import httpx
import pytest
from gateway_server import API, Server, Session, login_body
from oidc_provider import Browser, Provider, query_of

from matrixcore.identifiers import UserId
from tessera.clock import FakeClock
from tessera.http.limits import Rate
from tessera.storage import external_identities, profiles, sso_attempts, threepids, users
from tessera.storage.sso_attempts import SsoAttempt

Make = Callable[..., Server]
CLIENT = "https://chat.example.org/#/login"
REDIRECT = f"{API}/login/sso/redirect"
CALLBACK = "/_synapse/client/oidc/callback"
WHITELIST = {"client_whitelist": ["https://chat.example.org/"]}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider(FakeClock())
    await provider.start()
    yield provider
    await provider.close()


@pytest.fixture
def trusting(make_server: Make, provider: Provider) -> Server:
    """A server whose client need not be asked about."""
    return make_server(oidc_providers=[provider.settings()], sso=WHITELIST)


async def signed_in(server: Server, browser: Browser, idp: str = "oidc-staff") -> Session:
    """The whole way, for a client that is trusted."""
    answer = await browser.open(f"{REDIRECT}/{idp}", redirectUrl=CLIENT)
    assert answer.status_code == 302, answer.text
    return await redeemed(server, answer.headers["Location"])


async def redeemed(server: Server, url: str) -> Session:
    body = {"type": "m.login.token", "token": query_of(url)["loginToken"]}
    return server.session((await server.post("/login", body)).raise_for_status().json())


def text_of(page: httpx.Response) -> str:
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    return unescape(page.text)


async def test_the_whole_way_with_confirmation(make_server: Make, provider: Provider, browsers: Any) -> None:
    server = make_server(oidc_providers=[provider.settings(idp_brand="keycloak")])
    flows = (await server.get("/login")).json()["flows"]
    sso = {"id": "oidc-staff", "name": "Example staff", "brand": "keycloak"}
    assert {"type": "m.login.sso", "identity_providers": [sso]} in flows
    assert {"type": "m.login.token"} in flows
    page = await browsers(server).open(REDIRECT, redirectUrl=CLIENT)
    text = text_of(page)
    assert "Continue to <strong>chat.example.org</strong>?" in text
    assert "@ann:test.example" in text
    assert "<script" not in text
    (link,) = re.findall(r'class="button" href="([^"]+)"', text)
    assert link.startswith("https://chat.example.org/?loginToken=")
    assert link.endswith("#/login")
    session = await redeemed(server, link)
    assert session.user_id == "@ann:test.example"
    assert (await session.get("/profile/@ann:test.example/displayname")).json() == {"displayname": "Ann Lee"}
    again = await server.post("/login", {"type": "m.login.token", "token": query_of(link)["loginToken"]})
    assert again.json()["errcode"] == "M_FORBIDDEN"


async def test_what_the_provider_is_asked(trusting: Server, provider: Provider, browsers: Any) -> None:
    await signed_in(trusting, browsers(trusting))
    (asked,) = provider.asked
    assert asked["response_type"] == "code"
    assert asked["scope"] == "openid"
    assert asked["redirect_uri"] == "https://test.example/_synapse/client/oidc/callback"
    assert asked["code_challenge_method"] == "S256"
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 43
    assert "prompt" not in asked


async def test_the_cookie_is_for_this_host_and_no_script(trusting: Server, browsers: Any) -> None:
    first = await browsers(trusting).step(REDIRECT, redirectUrl=CLIENT)
    assert first.status_code == 302
    cookie = first.headers["Set-Cookie"].lower()
    for part in ("__host-tessera_sso=", "httponly", "secure", "samesite=lax", "path=/", "max-age=900"):
        assert part in cookie
    assert "domain" not in cookie
    assert first.headers["Cache-Control"] == "no-store"


async def test_the_second_login_is_the_same_user(trusting: Server, provider: Provider, browsers: Any) -> None:
    first = await signed_in(trusting, browsers(trusting))
    provider.person = {**provider.person, "preferred_username": "another", "name": "Married"}
    second = await signed_in(trusting, browsers(trusting))
    assert (second.user_id, second.device_id != first.device_id) == (first.user_id, True)
    provider.person = {**provider.person, "sub": "8", "preferred_username": "Ann"}
    assert (await signed_in(trusting, browsers(trusting))).user_id == "@ann1:test.example"


async def test_a_state_is_good_once_and_for_one_browser(trusting: Server, provider: Provider, browsers: Any) -> None:
    browser, stranger = browsers(trusting), browsers(trusting)
    to_provider = (await browser.step(REDIRECT, redirectUrl=CLIENT)).headers["Location"]
    back = (await browser.step(to_provider)).headers["Location"]
    # Login CSRF: the victim's browser follows the attacker's link back from the provider.
    assert "in another browser" in text_of(await stranger.step(back))
    await stranger.step(REDIRECT, redirectUrl=CLIENT)
    refused = await stranger.step(back)
    assert (refused.status_code, "Set-Cookie" in refused.headers) == (400, False)
    assert (await browser.step(back)).status_code == 302
    assert (await browser.step(back)).status_code == 400
    for state in ("", "x", "x" * 1000):
        assert (await browser.step(CALLBACK, code="x", state=state)).status_code == 400
    assert (await browser.step(CALLBACK)).status_code == 400


async def test_a_code_is_good_once(trusting: Server, provider: Provider, browsers: Any) -> None:
    browser = browsers(trusting)
    back = []
    for _ in range(2):
        to_provider = (await browser.step(REDIRECT, redirectUrl=CLIENT)).headers["Location"]
        back.append(query_of((await browser.step(to_provider)).headers["Location"]))
    assert (await browser.step(CALLBACK, **back[0])).status_code == 302
    replayed = await browser.step(CALLBACK, code=back[0]["code"], state=back[1]["state"])
    assert (replayed.status_code, "could not confirm" in text_of(replayed)) == (502, True)


async def test_two_windows_of_a_browser_do_not_disturb_each_other(trusting: Server, browsers: Any) -> None:
    browser = browsers(trusting)
    sent = [(await browser.step(REDIRECT, redirectUrl=CLIENT)).headers["Location"] for _ in range(2)]
    for url in sent:
        assert (await browser.open(url)).status_code == 302


async def test_a_sign_in_ends_after_a_while(trusting: Server, browsers: Any) -> None:
    browser = browsers(trusting)
    to_provider = (await browser.step(REDIRECT, redirectUrl=CLIENT)).headers["Location"]
    back = (await browser.step(to_provider)).headers["Location"]
    await trusting.clock.advance(15 * 60 + 1)
    assert "took too long" in text_of(await browser.step(back))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"nonce": "another"},
        {"exp": 1_600_000_000},
        {"iat": 1_800_000_000},
        {"sub": None},
    ],
)
async def test_a_token_that_is_not_for_this_makes_nobody(
    trusting: Server, provider: Provider, browsers: Any, wrong: dict[str, Any]
) -> None:
    provider.spoil = lambda claims: claims.update(wrong)
    answer = await browsers(trusting).open(REDIRECT, redirectUrl=CLIENT)
    assert (answer.status_code, "could not confirm who you are" in text_of(answer)) == (502, True)
    async with trusting.accounts.reading() as tx:
        assert await users.list_taken(tx, [UserId("@ann:test.example")]) == set()


async def test_new_keys_of_the_provider_are_looked_for_once(
    trusting: Server, provider: Provider, browsers: Any
) -> None:
    for _ in range(2):
        await signed_in(trusting, browsers(trusting))
    assert provider.key_requests == 1
    provider.rotate()
    await signed_in(trusting, browsers(trusting))
    assert provider.key_requests == 2


async def test_refusals_are_told_in_words(trusting: Server, provider: Provider, browsers: Any) -> None:
    provider.answer_error = "access_denied"
    assert "did not let you in" in text_of(await browsers(trusting).open(REDIRECT, redirectUrl=CLIENT))
    provider.answer_error = "<script>alert(1)</script>"
    page = await browsers(trusting).open(REDIRECT, redirectUrl=CLIENT)
    assert (page.status_code, "<script>" in page.text) == (403, False)


async def test_a_provider_that_is_away(make_server: Make, provider: Provider, browsers: Any) -> None:
    server = make_server(oidc_providers=[provider.settings()], sso=WHITELIST)
    await provider.close()
    answer = await browsers(server).open(REDIRECT, redirectUrl=CLIENT)
    assert (answer.status_code, "try again later" in text_of(answer)) == (502, True)


@pytest.mark.parametrize(
    "url", ["", "javascript:alert(1)", "data:text/html,x", "//evil.example", "https://good.example\\@evil.example"]
)
async def test_clients_that_cannot_be(trusting: Server, browsers: Any, url: str) -> None:
    answer = await browsers(trusting).step(REDIRECT, redirectUrl=url)
    assert answer.status_code == 400
    text_of(answer)


async def test_an_app_with_a_scheme_of_its_own(trusting: Server, browsers: Any) -> None:
    text = text_of(await browsers(trusting).open(REDIRECT, redirectUrl='io.app:/x?y="><script>'))
    assert "<strong>io.app:</strong>" in text
    assert "<script>" not in text


async def test_several_providers(make_server: Make, provider: Provider, browsers: Any) -> None:
    other = Provider(FakeClock(), person={"sub": "7", "preferred_username": "ann", "name": "Other Ann"})
    await other.start()
    try:
        names = ("staff", "students")
        settings = [one.settings(name) for one, name in zip((provider, other), names, strict=True)]
        server = make_server(oidc_providers=settings, sso=WHITELIST)
        browser = browsers(server)
        text = text_of(await browser.step(REDIRECT, redirectUrl=CLIENT))
        links = re.findall(r'class="button" href="([^"]+)"', text)
        assert len(links) == 2
        assert "Example students" in text
        answer = await browser.open(links[1])
        assert (await redeemed(server, answer.headers["Location"])).user_id == "@ann:test.example"
        assert len(other.asked) == 1
        # The same subject at another provider is somebody else.
        assert (await signed_in(server, browser, "oidc-staff")).user_id == "@ann1:test.example"
        unknown = await browser.step(f"{REDIRECT}/oidc-none", redirectUrl=CLIENT)
        assert (unknown.status_code, "no such way" in text_of(unknown)) == (404, True)
    finally:
        await other.close()


async def test_claims_of_the_user_info(make_server: Make, provider: Provider, browsers: Any) -> None:
    settings = provider.settings(user_profile_method="userinfo_endpoint", scopes=["openid", "profile"])
    server = make_server(oidc_providers=[settings], sso=WHITELIST)
    provider.userinfo = {"sub": "7", "preferred_username": "bob", "email": "Bob@Example.org"}
    session = await signed_in(server, browsers(server))
    assert session.user_id == "@bob:test.example"
    async with server.accounts.reading() as tx:
        (address,) = await threepids.list_threepids(tx, session.user_id)
    assert (address.medium, address.address) == ("email", "bob@example.org")
    provider.userinfo = {"sub": "8", "preferred_username": "eve"}
    assert (await browsers(server).open(REDIRECT, redirectUrl=CLIENT)).status_code == 502


async def test_oauth_without_id_tokens(make_server: Make, provider: Provider, browsers: Any) -> None:
    """As GitHub's: no discovery, no ID token, a number for a subject."""
    settings = provider.settings(
        scopes=["read:user"],
        discover=False,
        authorization_endpoint=f"{provider.url}/authorize",
        token_endpoint=f"{provider.url}/token",
        userinfo_endpoint=f"{provider.url}/userinfo",
        pkce_method="always",
        user_mapping_provider={"config": {"subject_claim": "id", "localpart_template": "{{ user.login }}"}},
    )
    server = make_server(oidc_providers=[settings], sso=WHITELIST)
    provider.spoil = lambda claims: claims.update(nonce="x")
    provider.userinfo = {"id": 4711, "login": "octo"}
    browser = browsers(server)
    to_provider = (await browser.step(f"{REDIRECT}/oidc-staff", redirectUrl=CLIENT)).headers["Location"]
    assert "nonce" not in query_of(to_provider)
    answer = await browser.open(f"{to_provider}&nonce=unused")
    assert (await redeemed(server, answer.headers["Location"])).user_id == "@octo:test.example"


async def test_who_may_sign_in(make_server: Make, provider: Provider, browsers: Any) -> None:
    required = provider.settings(attribute_requirements=[{"attribute": "groups", "value": "staff"}])
    server = make_server(oidc_providers=[required], sso=WHITELIST)
    answer = await browsers(server).open(REDIRECT, redirectUrl=CLIENT)
    assert (answer.status_code, "may not be used here" in text_of(answer)) == (403, True)
    provider.person["groups"] = ["it", "staff"]
    assert (await signed_in(server, browsers(server))).user_id == "@ann:test.example"
    closed = make_server(oidc_providers=[provider.settings("other", enable_registration=False)], sso=WHITELIST)
    answer = await browsers(closed).open(REDIRECT, redirectUrl=CLIENT)
    assert "none is made" in text_of(answer)


async def test_existing_accounts_by_their_names(make_server: Make, provider: Provider, browsers: Any) -> None:
    await make_server().register("ann")
    settings = provider.settings(allow_existing_users=True, enable_registration=False)
    server = make_server(oidc_providers=[settings], sso=WHITELIST)
    assert (await signed_in(server, browsers(server))).user_id == "@ann:test.example"
    apart = make_server(oidc_providers=[provider.settings("apart")], sso=WHITELIST)
    assert (await signed_in(apart, browsers(apart), "oidc-apart")).user_id == "@ann1:test.example"


async def test_names_of_bridges_are_nobodys(make_server: Make, provider: Provider, browsers: Any) -> None:
    class Bridge:
        def is_user_claimed(self, user_id: UserId) -> bool:
            return user_id == "@ann:test.example"

    await make_server().register("ann")
    server = make_server(oidc_providers=[provider.settings(allow_existing_users=True)], sso=WHITELIST)
    server = replace(server, gateway=replace(server.gateway, claims=Bridge()))
    assert (await signed_in(server, browsers(server))).user_id == "@ann1:test.example"


async def test_closed_and_locked_accounts(trusting: Server, browsers: Any) -> None:
    session = await signed_in(trusting, browsers(trusting))
    async with trusting.accounts.transaction() as tx:
        await users.set_mark(tx, session.user_id, "suspended", True)
    await signed_in(trusting, browsers(trusting))
    async with trusting.accounts.transaction() as tx:
        await users.set_mark(tx, session.user_id, "locked", True)
    assert "is locked" in text_of(await browsers(trusting).open(REDIRECT, redirectUrl=CLIENT))
    async with trusting.accounts.transaction() as tx:
        await users.deactivate(tx, session.user_id, erase=False)
    assert "was closed" in text_of(await browsers(trusting).open(REDIRECT, redirectUrl=CLIENT))


async def test_names_are_taken_over_at_each_login_if_asked(
    make_server: Make, provider: Provider, browsers: Any
) -> None:
    server = make_server(oidc_providers=[provider.settings()], sso={**WHITELIST, "update_profile_information": True})
    session = await signed_in(server, browsers(server))
    provider.person["name"] = "Ann Lee-Ray"
    await signed_in(server, browsers(server))
    async with server.accounts.reading() as tx:
        assert (await profiles.list_profiles(tx, [session.user_id]))[session.user_id].displayname == "Ann Lee-Ray"
    assert server.propagated == [session.user_id]


async def test_administrators_see_and_set_identities(trusting: Server, provider: Provider, browsers: Any) -> None:
    admin = await trusting.register("admin")
    async with trusting.accounts.transaction() as tx:
        await users.set_admin(tx, admin.user_id, True)
    path = "/_synapse/admin/v2/users/@carol:test.example"
    identity = {"auth_provider": "oidc-staff", "external_id": "7"}
    made = await admin.put(path, {"external_ids": [identity]})
    assert (made.status_code, made.json()["external_ids"]) == (201, [identity])
    carol = await signed_in(trusting, browsers(trusting))
    assert carol.user_id == "@carol:test.example"
    taken = await admin.put("/_synapse/admin/v2/users/@dave:test.example", {"external_ids": [identity]})
    assert (taken.status_code, taken.json()["errcode"]) == (409, "M_UNKNOWN")
    async with trusting.accounts.reading() as tx:
        assert await external_identities.list_identities(tx, UserId("@dave:test.example")) == []
    assert (await admin.put(path, {"external_ids": []})).json()["external_ids"] == []
    for wrong in ("x", [{"auth_provider": "oidc-staff"}], [{"auth_provider": 1, "external_id": "x"}]):
        assert (await admin.put(path, {"external_ids": wrong})).status_code == 400


async def test_a_server_without_passwords(make_server: Make, provider: Provider, browsers: Any) -> None:
    alice = await make_server().register("alice")
    server = make_server(
        oidc_providers=[provider.settings()],
        sso=WHITELIST,
        password_config={"enabled": False},
        enable_registration=False,
    )
    flows = (await server.get("/login")).json()["flows"]
    assert [flow["type"] for flow in flows] == ["m.login.sso", "m.login.token"]
    assert (await server.post("/login", login_body("alice"))).status_code == 400
    here = Session(server.client, alice.user_id, alice.device_id, alice.token)
    assert (await here.post("/account/password", {"new_password": "x"})).status_code == 403
    capabilities = (await here.get("/capabilities")).json()["capabilities"]
    assert capabilities["m.change_password"] == {"enabled": False}
    challenge = (await here.delete("/devices/X", {})).json()
    assert challenge["flows"] == [{"stages": ["m.login.sso"]}]
    session = await signed_in(server, browsers(server))
    assert session.user_id == "@ann:test.example"


async def test_too_many_at_once_wait(make_server: Make, provider: Provider, browsers: Any) -> None:
    server = make_server(rates={"tessera.rc_sso": Rate(0.1, 1)}, oidc_providers=[provider.settings()])
    browser = browsers(server)
    await browser.step(REDIRECT, redirectUrl=CLIENT)
    assert (await browser.step(REDIRECT, redirectUrl=CLIENT)).status_code == 429


async def test_a_server_without_providers(server: Server, browsers: Any) -> None:
    assert "m.login.sso" not in (await server.get("/login")).text
    for path in (REDIRECT, f"{REDIRECT}/oidc"):
        answer = await browsers(server).step(path, redirectUrl=CLIENT)
        assert (answer.status_code, answer.json()["errcode"]) == (404, "M_UNRECOGNIZED")
    assert (await browsers(server).step(CALLBACK, redirectUrl=CLIENT)).status_code == 404


async def test_the_answer_must_be_of_the_provider_that_was_asked(
    trusting: Server, provider: Provider, browsers: Any
) -> None:
    browser = browsers(trusting)
    for issuer, status in ((provider.url, 302), ("https://evil.example", 502)):
        to_provider = (await browser.step(REDIRECT, redirectUrl=CLIENT)).headers["Location"]
        back = query_of((await browser.step(to_provider)).headers["Location"])
        assert (await browser.step(CALLBACK, **back, iss=issuer)).status_code == status


async def test_attempts_are_bounded_and_swept(server: Server) -> None:
    attempt = SsoAttempt("oidc", "nonce", "verifier", CLIENT, None)

    async def add(state: str, now_ms: int) -> bool:
        async with server.accounts.transaction() as tx:
            return await sso_attempts.add_attempt(
                tx, state, "browser", attempt, expires_ts=now_ms + 10, now_ms=now_ms, most=2
            )

    assert [await add("a", 0), await add("b", 0), await add("c", 0)] == [True, True, False]
    assert await add("c", 10)
    async with server.accounts.transaction() as tx:
        assert await tx.fetchval("SELECT count(*) FROM accounts.sso_attempts") == 1
        assert await sso_attempts.take_attempt(tx, "c", "other", is_proven=False, now_ms=11) is None
        assert await sso_attempts.take_attempt(tx, "c", "browser", is_proven=True, now_ms=11) is None
        assert await sso_attempts.take_attempt(tx, "c", "browser", is_proven=False, now_ms=11) == attempt

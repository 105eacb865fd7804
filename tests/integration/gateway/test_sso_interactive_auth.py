"""Interactive authentication of users without a password: they sign in once more, and say that it is meant."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from gateway_server import API, PASSWORD, Server, Session, password_auth
from oidc_provider import Browser, Provider, query_of
from test_single_sign_on import CLIENT, REDIRECT, WHITELIST, redeemed, signed_in, text_of

from tessera.clock import FakeClock
from tessera.storage import external_identities
from tessera.storage.external_identities import ExternalIdentity

FALLBACK = f"{API}/auth/m.login.sso/fallback/web"
CONFIRM = "/_synapse/client/oidc/confirm"
SSO_ONLY = [{"stages": ["m.login.sso"]}]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider(FakeClock())
    await provider.start()
    yield provider
    await provider.close()


@pytest.fixture
def server(make_server: Callable[..., Server], provider: Provider) -> Server:
    return make_server(oidc_providers=[provider.settings()], sso=WHITELIST)


@pytest.fixture
async def browser(server: Server) -> AsyncIterator[Browser]:
    browser = Browser(server)
    yield browser
    await browser.client.aclose()


async def asked(caller: Session, /, **auth: Any) -> tuple[int, dict[str, Any]]:
    """Try to delete the device X."""
    response = await caller.delete("/devices/X", {"auth": auth} if auth else {})
    return response.status_code, response.json()


def token_in(text: str) -> str:
    (token,) = re.findall(r'name="token" value="([^"]+)"', text)
    return str(token)


async def test_a_device_is_deleted_after_a_fresh_sign_in(server: Server, provider: Provider, browser: Browser) -> None:
    session = await signed_in(server, browser)
    status, challenge = await asked(session)
    assert (status, challenge["flows"]) == (401, SSO_ONLY)
    uia = challenge["session"]
    early = await asked(session, type="m.login.sso", session=uia)
    assert (early[0], early[1]["session"], "completed" in early[1]) == (401, uia, False)

    text = text_of(await browser.open(FALLBACK, session=uia))
    assert provider.asked[-1]["prompt"] == "login"
    assert "remove a device from your account, <strong>@ann:test.example</strong>" in text
    assert "<script" not in text
    # The person has said nothing yet.
    assert (await asked(session, session=uia))[0] == 401
    done = await browser.post(CONFIRM, {"token": token_in(text)})
    assert "onAuthDone" in text_of(done)
    assert await asked(session, session=uia) == (200, {})
    assert (await asked(session, session=uia))[0] == 401


async def test_the_session_is_for_what_was_asked_only(server: Server, browser: Browser) -> None:
    session = await signed_in(server, browser)
    uia = (await asked(session))[1]["session"]
    text = text_of(await browser.open(FALLBACK, session=uia))
    await browser.post(CONFIRM, {"token": token_in(text)})
    other = await session.delete("/devices/Y", {"auth": {"session": uia}})
    assert (other.status_code, "completed" in other.json()) == (401, False)


async def test_somebody_else_does_not_pass_it(server: Server, provider: Provider, browser: Browser) -> None:
    session = await signed_in(server, browser)
    uia = (await asked(session))[1]["session"]
    provider.person = {"sub": "8", "preferred_username": "eve", "name": "Eve"}
    for _ in range(2):  # without an account, and with one
        page = await browser.open(FALLBACK, session=uia)
        assert (page.status_code, "somebody else" in text_of(page)) == (403, True)
        await signed_in(server, browser)
    assert (await asked(session, session=uia))[0] == 401


async def test_the_word_is_that_of_the_browser_that_signed_in(server: Server, browser: Browser) -> None:
    session = await signed_in(server, browser)
    uia = (await asked(session))[1]["session"]
    token = token_in(text_of(await browser.open(FALLBACK, session=uia)))
    stranger = Browser(server)
    try:
        assert (await stranger.post(CONFIRM, {"token": token})).status_code == 400
        await stranger.step(REDIRECT, redirectUrl=CLIENT)
        assert (await stranger.post(CONFIRM, {"token": token})).status_code == 400
    finally:
        await stranger.client.aclose()
    assert (await browser.post(CONFIRM, {})).status_code == 400
    assert (await browser.post(CONFIRM, {"token": "x"})).status_code == 400
    assert (await browser.post(CONFIRM, {"token": token})).status_code == 200
    assert (await browser.post(CONFIRM, {"token": token})).status_code == 400


async def test_a_state_is_no_word_and_a_word_no_state(server: Server, browser: Browser) -> None:
    session = await signed_in(server, browser)
    uia = (await asked(session))[1]["session"]
    state = query_of((await browser.step(FALLBACK, session=uia)).headers["Location"])["state"]
    assert (await browser.post(CONFIRM, {"token": state})).status_code == 400
    assert (await asked(session, session=uia))[0] == 401
    token = token_in(text_of(await browser.open(FALLBACK, session=uia)))
    back = await browser.step("/_synapse/client/oidc/callback", state=token, code="x")
    assert back.status_code == 400


async def test_whoever_has_a_password_too_may_choose(server: Server, browser: Browser) -> None:
    alice = await server.register("alice")
    assert (await asked(alice))[1]["flows"] == [{"stages": ["m.login.password"]}]
    async with server.accounts.transaction() as tx:
        await external_identities.add_identity(tx, alice.user_id, ExternalIdentity("oidc-staff", "7"))
    status, challenge = await asked(alice)
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.password"]}, *SSO_ONLY])
    auth = password_auth("alice", PASSWORD, challenge["session"])
    assert (await asked(alice, **auth))[0] == 200


async def test_the_page_says_what_it_is_for(server: Server, browser: Browser) -> None:
    session = await signed_in(server, browser)
    asked_for = await session.post("/account/deactivate", {})
    assert (asked_for.status_code, asked_for.json()["flows"]) == (401, SSO_ONLY)
    text = text_of(await browser.open(FALLBACK, session=asked_for.json()["session"]))
    assert "close your account for ever" in text
    await browser.post(CONFIRM, {"token": token_in(text)})
    gone = await session.post("/account/deactivate", {"auth": {"session": asked_for.json()["session"]}})
    assert gone.status_code == 200


async def test_several_providers_of_one_user(make_server: Callable[..., Server], provider: Provider) -> None:
    settings = [provider.settings(name) for name in ("one", "two", "three")]
    server = make_server(oidc_providers=settings, sso=WHITELIST)
    browser = Browser(server)
    try:
        answer = await browser.open(f"{REDIRECT}/oidc-one", redirectUrl=CLIENT)
        session = await redeemed(server, answer.headers["Location"])
        async with server.accounts.transaction() as tx:
            await external_identities.add_identity(tx, session.user_id, ExternalIdentity("oidc-two", "7"))
        uia = (await asked(session))[1]["session"]
        text = text_of(await browser.step(FALLBACK, session=uia))
        links = re.findall(r'class="button" href="([^"]+)"', text)
        assert [("idp=oidc-one" in link, "idp=oidc-two" in link) for link in links] == [(True, False), (False, True)]
        assert "Example three" not in text
        assert (await browser.step(FALLBACK, session=uia, idp="oidc-three")).status_code == 404
        text = text_of(await browser.open(FALLBACK, session=uia, idp="oidc-two"))
        assert (await browser.post(CONFIRM, {"token": token_in(text)})).status_code == 200
        assert (await asked(session, session=uia))[0] == 200
    finally:
        await browser.client.aclose()


async def test_sessions_that_there_are_not(server: Server, browser: Browser) -> None:
    assert (await browser.step(FALLBACK, session="none")).status_code == 400
    assert (await browser.step(FALLBACK)).status_code == 400
    session = await signed_in(server, browser)
    uia = (await asked(session))[1]["session"]
    text = text_of(await browser.open(FALLBACK, session=uia))
    await server.clock.advance(15 * 60 + 1)
    assert (await browser.post(CONFIRM, {"token": token_in(text)})).status_code == 400

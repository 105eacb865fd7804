"""Login by single sign-on with a provider that others have written."""

from collections.abc import Callable
from importlib import import_module

import httpx
import pytest
from gateway_server import API, Server
from oidc_provider import Browser, query_of

from tessera.clock import SystemClock


# Its library warns of its own next release when it is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_login_with_oidc_provider_mock(make_server: Callable[..., Server]) -> None:
    mock = import_module("oidc_provider_mock")
    person = mock.User(sub="ann@example.org", claims={"name": "Ann Lee", "email": "ann@example.org"})
    with mock.run_server_in_thread(user_claims=[person], require_nonce=True) as provider:
        issuer = f"http://localhost:{provider.server_port}"
        mapping = {
            "localpart_template": "{{ user.email | localpart_from_email }}",
            "display_name_template": "{{ user.name }}",
        }
        settings = {
            "issuer": issuer,
            "client_id": "matrix",
            "client_secret": "secret",
            "scopes": ["openid", "profile", "email"],
            "skip_verification": True,
            "user_profile_method": "userinfo_endpoint",
            "user_mapping_provider": {"config": mapping},
        }
        server = make_server(oidc_providers=[settings], sso={"client_whitelist": ["https://chat.example.org/"]})
        server.clock.shift((SystemClock().now_ms() - server.clock.now_ms()) / 1000)
        browser = Browser(server)
        redirect = f"{API}/login/sso/redirect/oidc"
        to_provider = (await browser.step(redirect, redirectUrl="https://chat.example.org/")).headers["Location"]
        async with httpx.AsyncClient() as form:
            back = await form.post(to_provider, data={"sub": "ann@example.org"})
        to_client = await browser.step(back.headers["Location"])
        await browser.client.aclose()
    assert to_client.status_code == 302, to_client.text
    body = {"type": "m.login.token", "token": query_of(to_client.headers["Location"])["loginToken"]}
    session = server.session((await server.post("/login", body)).raise_for_status().json())
    assert session.user_id == "@ann:test.example"
    name = await session.get("/profile/@ann:test.example/displayname")
    assert name.json() == {"displayname": "Ann Lee"}

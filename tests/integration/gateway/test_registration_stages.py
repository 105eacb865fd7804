"""Registration with tokens, terms and a captcha, and the pages on which people pass these stages."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from gateway_server import PASSWORD, Server, Session

from tessera.http.limits import Rate
from tessera.storage import users

Make = Callable[..., Server]
TOKENS = "/_synapse/admin/v1/registration_tokens"
VALIDITY = "/_matrix/client/v1/register/m.login.registration_token/validity"


async def challenge(server: Server, **fields: Any) -> dict[str, Any]:
    response = await server.post("/register", {"username": "alice", "password": PASSWORD, **fields})
    assert response.status_code == 401
    found: dict[str, Any] = response.json()
    return found


async def answer(server: Server, session: str, name: str = "alice", **auth: Any) -> tuple[int, dict[str, Any]]:
    body = {"username": name, "password": PASSWORD, "auth": {"session": session, **auth}}
    response = await server.post("/register", body)
    return response.status_code, response.json()


async def administrator(make_server: Make) -> Session:
    """An administrator, registered where nothing is asked."""
    server = make_server()
    admin = await server.register("admin")
    async with server.accounts.transaction() as tx:
        await users.set_admin(tx, admin.user_id, True)
    return admin


@pytest.fixture
async def captcha() -> AsyncIterator[str]:
    """Who checks captchas: the right answer is "people"."""

    async def verify(request: web.Request) -> web.Response:
        form = await request.post()
        return web.json_response({"success": form["secret"] == "private" and form["response"] == "people"})

    app = web.Application()
    app.router.add_post("/verify", verify)
    server = TestServer(app)
    await server.start_server()
    yield str(server.make_url("/verify"))
    await server.close()


async def test_a_token_is_good_for_as_many_accounts_as_it_says(make_server: Make) -> None:
    admin = await administrator(make_server)
    server = make_server(registration_requires_token=True)
    made = await admin.post(f"{TOKENS}/new", {"token": "two.tickets", "uses_allowed": 1})
    assert made.json() == {
        "token": "two.tickets",
        "uses_allowed": 1,
        "pending": 0,
        "completed": 0,
        "expiry_time": None,
    }
    asked = await challenge(server)
    assert asked["flows"] == [{"stages": ["m.login.registration_token"]}]
    token = {"type": "m.login.registration_token", "token": "two.tickets"}
    wrong = await answer(server, asked["session"], **{**token, "token": "three"})
    assert (wrong[0], wrong[1]["errcode"]) == (401, "M_UNAUTHORIZED")
    assert (await server.get(VALIDITY, params={"token": "two.tickets"})).json() == {"valid": True}
    status, reply = await answer(server, asked["session"], **token)
    assert (status, reply["user_id"]) == (200, "@alice:test.example")
    assert (await admin.get(f"{TOKENS}/two.tickets")).json()["completed"] == 1
    assert (await server.get(VALIDITY, params={"token": "two.tickets"})).json() == {"valid": False}
    late = await challenge(server, username="bob")
    assert (await answer(server, late["session"], "bob", **token))[1]["errcode"] == "M_UNAUTHORIZED"


async def test_a_use_is_pending_until_the_session_ends(make_server: Make) -> None:
    admin = await administrator(make_server)
    server = make_server(registration_requires_token=True)
    await admin.post(f"{TOKENS}/new", {"token": "one", "uses_allowed": 1})
    asked = await challenge(server)
    page = f"/auth/m.login.registration_token/fallback/web?session={asked['session']}"
    assert 'name="token"' in (await server.get(page)).text
    wrong = await server.client.post(f"/_matrix/client/v3{page}", data={"token": "none"})
    assert wrong.status_code == 401
    assert "not valid" in wrong.text
    passed = await server.client.post(f"/_matrix/client/v3{page}", data={"token": "one"})
    assert (passed.status_code, "onAuthDone" in passed.text) == (200, True)
    assert (await admin.get(f"{TOKENS}/one")).json()["pending"] == 1
    assert (await server.get(VALIDITY, params={"token": "one"})).json() == {"valid": False}
    assert (await admin.get(TOKENS, params={"valid": "true"})).json() == {"registration_tokens": []}
    # The name is taken meanwhile; the session and the use are still there for another.
    await make_server().register("alice")
    assert (await answer(server, asked["session"]))[1]["errcode"] == "M_USER_IN_USE"
    status, _ = await answer(server, asked["session"], "bob")
    assert status == 200
    assert (await admin.get(f"{TOKENS}/one")).json() == {
        "token": "one",
        "uses_allowed": 1,
        "pending": 0,
        "completed": 1,
        "expiry_time": None,
    }


async def test_tokens_are_administered_by_administrators(make_server: Make) -> None:
    admin = await administrator(make_server)
    server = make_server()
    alice = await server.register("alice")
    for method, path in (("GET", TOKENS), ("POST", f"{TOKENS}/new"), ("PUT", f"{TOKENS}/x"), ("DELETE", f"{TOKENS}/x")):
        refused = await alice.request(method, path, {})
        assert (refused.status_code, refused.json()["errcode"]) == (403, "M_FORBIDDEN"), path
    assert (await server.get(TOKENS)).status_code == 401
    made = (await admin.post(f"{TOKENS}/new", {"length": 8})).json()
    assert len(made["token"]) == 8
    assert (await admin.post(f"{TOKENS}/new", {"token": made["token"]})).json()["errcode"] == "M_INVALID_PARAM"
    for wrong in ({"token": "no spaces"}, {"length": 65}, {"uses_allowed": -1}, {"expiry_time": -5}):
        assert (await admin.post(f"{TOKENS}/new", wrong)).json()["errcode"] == "M_INVALID_PARAM"
    path = f"{TOKENS}/{made['token']}"
    assert (await admin.put(path, {"uses_allowed": 5})).json()["uses_allowed"] == 5
    assert (await admin.put(path, {"uses_allowed": None})).json()["uses_allowed"] is None
    assert (await admin.delete(path)).json() == {}
    assert [(await admin.get(path)).status_code, (await admin.delete(path)).status_code] == [404, 404]


async def test_a_token_expires_and_is_guessed_slowly(make_server: Make) -> None:
    admin = await administrator(make_server)
    server = make_server(rates={"rc_registration_token_validity": Rate(0.1, 2)})
    await admin.post(f"{TOKENS}/new", {"token": "soon", "expiry_time": server.clock.now_ms() + 1000})
    assert (await server.get(VALIDITY, params={"token": "soon"})).json() == {"valid": True}
    await server.clock.advance(1.0)
    assert (await server.get(VALIDITY, params={"token": "soon"})).json() == {"valid": False}
    assert (await server.get(VALIDITY, params={"token": "soon"})).json()["errcode"] == "M_LIMIT_EXCEEDED"
    closed = make_server(enable_registration=False)
    assert (await closed.get(VALIDITY, params={"token": "soon"})).status_code == 403


async def test_terms_are_accepted_and_kept(make_server: Make, tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "1.0.html").write_text("<p>Be kind at {{ server_name }}.</p>")
    server = make_server(
        public_baseurl="https://matrix.test.example",
        user_consent={"template_dir": str(tmp_path), "version": "1.0", "require_at_registration": True},
        tessera={
            "terms": {
                "terms_of_service": {
                    "version": "7",
                    "languages": {"en": {"name": "Terms of Service", "url": "https://test.example/tos"}},
                }
            }
        },
    )
    asked = await challenge(server)
    assert asked["flows"] == [{"stages": ["m.login.terms"]}]
    assert asked["params"]["m.login.terms"]["policies"] == {
        "terms_of_service": {"version": "7", "en": {"name": "Terms of Service", "url": "https://test.example/tos"}},
        "privacy_policy": {
            "version": "1.0",
            "en": {"name": "Privacy Policy", "url": "https://matrix.test.example/_matrix/consent?v=1.0"},
        },
    }
    assert (await server.get("/_matrix/consent?v=1.0")).text == "<p>Be kind at test.example.</p>"
    assert (await server.get("/_matrix/consent?v=../en/1.0")).status_code == 404
    page = await server.get(f"/auth/m.login.terms/fallback/web?session={asked['session']}")
    assert "https://test.example/tos" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    status, _ = await answer(server, asked["session"], type="m.login.terms")
    assert status == 200
    async with server.accounts.reading() as tx:
        rows = await tx.fetch("SELECT user_id, policy, version FROM accounts.policy_consents ORDER BY policy")
    assert [tuple(row) for row in rows] == [
        ("@alice:test.example", "privacy_policy", "1.0"),
        ("@alice:test.example", "terms_of_service", "7"),
    ]


async def test_a_captcha_is_checked_elsewhere(make_server: Make, captcha: str) -> None:
    server = make_server(
        enable_registration_captcha=True,
        recaptcha_public_key="public",
        recaptcha_private_key="private",
        recaptcha_siteverify_api=captcha,
    )
    asked = await challenge(server)
    assert asked["params"] == {"m.login.recaptcha": {"public_key": "public"}}
    missing = await answer(server, asked["session"], type="m.login.recaptcha")
    assert missing[1]["errcode"] == "M_CAPTCHA_NEEDED"
    robot = await answer(server, asked["session"], type="m.login.recaptcha", response="robots")
    assert (robot[0], robot[1]["errcode"]) == (401, "M_CAPTCHA_INVALID")
    page = await server.get(f"/auth/m.login.recaptcha/fallback/web?session={asked['session']}")
    assert 'data-sitekey="public"' in page.text
    passed = await server.client.post(
        f"/_matrix/client/v3/auth/m.login.recaptcha/fallback/web?session={asked['session']}",
        data={"g-recaptcha-response": "people"},
    )
    assert passed.status_code == 200
    assert (await answer(server, asked["session"]))[0] == 200


async def test_a_captcha_s_checker_that_is_away(make_server: Make) -> None:
    server = make_server(
        enable_registration_captcha=True,
        recaptcha_public_key="public",
        recaptcha_private_key="private",
        recaptcha_siteverify_api="http://127.0.0.1:1/verify",
    )
    asked = await challenge(server)
    status, _ = await answer(server, asked["session"], type="m.login.recaptcha", response="people")
    assert status == 503


async def test_pages_that_are_not_there(server: Server) -> None:
    for stage in ("m.login.recaptcha", "m.login.terms", "m.login.password", "nonsense"):
        missing = await server.get(f"/auth/{stage}/fallback/web?session=x")
        assert (missing.status_code, missing.json()["errcode"]) == (404, "M_UNRECOGNIZED")
    assert (await server.get("/auth/m.login.dummy/fallback/web")).json()["errcode"] == "M_MISSING_PARAM"
    expired = await server.client.post("/_matrix/client/v3/auth/m.login.dummy/fallback/web?session=x")
    assert (expired.status_code, "expired" in expired.text) == (404, True)

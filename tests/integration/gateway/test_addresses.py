"""E-mail addresses: proven by a mail, kept by accounts, good for a new password and for logging in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP
from gateway_server import API, PASSWORD, Server, Session, password_auth
from mail_server import MailBox

from tessera.http.limits import Rate

Make = Callable[..., Server]
SECRET = "a.secret=of_the-client"


@pytest.fixture
async def mailbox() -> AsyncIterator[MailBox]:
    box = MailBox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(box, hostname="mail"), "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    yield box
    server.close()
    await server.wait_closed()


@pytest.fixture
def settings(mailbox: MailBox) -> dict[str, Any]:
    return {
        "public_baseurl": "http://test.example",
        "email": {
            "smtp_host": "127.0.0.1",
            "smtp_port": mailbox.port,
            "notif_from": "%(app)s <matrix@test.example>",
            "app_name": "Tests",
        },
    }


@pytest.fixture
def mailing(make_server: Make, settings: dict[str, Any]) -> Server:
    return make_server(**settings)


async def request(server: Server, what: str, address: str, attempt: int = 1, **fields: Any) -> tuple[int, Any]:
    body = {"client_secret": SECRET, "email": address, "send_attempt": attempt, **fields}
    response = await server.post(f"{what}/email/requestToken", body)
    return response.status_code, response.json()


async def prove(server: Server, mailbox: MailBox, what: str, address: str) -> str:
    """Ask for a mail and confirm; the sid."""
    status, reply = await request(server, what, address)
    assert status == 200, reply
    confirmed = await server.client.post(mailbox.link())
    assert confirmed.status_code == 200
    sid: str = reply["sid"]
    return sid


async def add(server: Server, mailbox: MailBox, session: Session, address: str) -> tuple[int, Any]:
    sid = await prove(server, mailbox, "/account/3pid", address)
    body = {"sid": sid, "client_secret": SECRET, "auth": password_auth(session.user_id)}
    response = await session.post("/account/3pid/add", body)
    return response.status_code, response.json()


def credentials(sid: str, secret: str = SECRET) -> dict[str, Any]:
    return {"type": "m.login.email.identity", "threepid_creds": {"sid": sid, "client_secret": secret}}


async def test_an_address_is_added_and_deleted(mailing: Server, mailbox: MailBox) -> None:
    alice = await mailing.register("alice")
    assert (await alice.get("/account/3pid")).json() == {"threepids": []}
    assert await add(mailing, mailbox, alice, "Alice@Example.ORG") == (200, {})
    mail = mailbox.mails[0]
    assert (mail["From"], mail["To"]) == ("Tests <matrix@test.example>", "alice@example.org")
    assert mail["Subject"] == "[test.example] Validate your email"
    html = mail.get_body(("html",))
    assert html is not None
    assert "Confirm the address" in html.get_content()
    now_ms = mailing.clock.now_ms()
    known = {"medium": "email", "address": "alice@example.org", "validated_at": now_ms, "added_at": now_ms}
    assert (await alice.get("/account/3pid")).json() == {"threepids": [known]}
    gone = {"medium": "email", "address": "alice@example.org"}
    assert (await alice.post("/account/3pid/delete", gone)).json() == {"id_server_unbind_result": "no-support"}
    assert (await alice.get("/account/3pid")).json() == {"threepids": []}


async def test_opening_the_link_alone_confirms_nothing(mailing: Server, mailbox: MailBox) -> None:
    alice = await mailing.register("alice")
    _, reply = await request(mailing, "/account/3pid", "alice@example.org")
    page = await mailing.client.get(mailbox.link())
    assert (page.status_code, '<form method="post">' in page.text) == (200, True)
    body = {"sid": reply["sid"], "client_secret": SECRET, "auth": password_auth(alice.user_id)}
    early = await alice.post("/account/3pid/add", body)
    assert (early.status_code, early.json()["errcode"]) == (400, "M_THREEPID_AUTH_FAILED")
    assert (await mailing.client.post(mailbox.link())).status_code == 200
    other = {**body, "client_secret": "another"}
    assert (await alice.post("/account/3pid/add", other)).json()["errcode"] == "M_THREEPID_AUTH_FAILED"
    assert (await alice.post("/account/3pid/add", body)).status_code == 200
    # The proof is used up.
    assert (await alice.post("/account/3pid/add", body)).json()["errcode"] == "M_THREEPID_AUTH_FAILED"


async def test_an_address_belongs_to_one_account(mailing: Server, mailbox: MailBox) -> None:
    alice, bob = await mailing.register("alice"), await mailing.register("bob")
    # Bob has begun before Alice is done.
    sid = await prove(mailing, mailbox, "/account/3pid", "shared@example.org")
    body = {"client_secret": "other", "email": "shared@example.org", "send_attempt": 1}
    reply = (await mailing.post("/account/3pid/email/requestToken", body)).json()
    await mailing.client.post(mailbox.link())
    auth = password_auth(alice.user_id)
    done = await alice.post("/account/3pid/add", {"sid": sid, "client_secret": SECRET, "auth": auth})
    assert done.status_code == 200
    late = {"sid": reply["sid"], "client_secret": "other", "auth": password_auth(bob.user_id)}
    assert (await bob.post("/account/3pid/add", late)).json()["errcode"] == "M_THREEPID_IN_USE"
    for what in ("/account/3pid", "/register"):
        status, refused = await request(mailing, what, "SHARED@example.org", 5)
        assert (status, refused["errcode"]) == (400, "M_THREEPID_IN_USE")
    foreign = {"medium": "email", "address": "shared@example.org"}
    await bob.post("/account/3pid/delete", foreign)
    assert len((await alice.get("/account/3pid")).json()["threepids"]) == 1


async def test_each_attempt_sends_one_mail(mailing: Server, mailbox: MailBox) -> None:
    first = await request(mailing, "/register", "alice@example.org", 1)
    again = await request(mailing, "/register", "alice@example.org", 1)
    assert again == first
    assert len(mailbox.mails) == 1
    earlier = mailbox.link()
    assert await request(mailing, "/register", "alice@example.org", 2) == first
    assert len(mailbox.mails) == 2
    assert mailbox.link() != earlier
    assert (await mailing.client.get(earlier)).status_code == 200  # both mails work
    other = await request(mailing, "/register", "alice@example.org", 1, client_secret="other")
    assert other[1]["sid"] != first[1]["sid"]


async def test_where_a_confirmation_leads(mailing: Server, mailbox: MailBox) -> None:
    await request(mailing, "/register", "alice@example.org", next_link="https://app.example.org/#/done")
    page = await mailing.client.get(mailbox.link())
    assert "form-action 'self' https://app.example.org" in page.headers["content-security-policy"]
    led = await mailing.client.post(mailbox.link())
    assert (led.status_code, led.headers["location"]) == (303, "https://app.example.org/#/done")
    for link in ("javascript:alert(1)", "https://user@evil.example", "//x", "https://a\nb"):
        status, refused = await request(mailing, "/register", "bob@example.org", next_link=link)
        assert (status, refused["errcode"]) == (400, "M_INVALID_PARAM")


async def test_links_expire_and_cannot_be_guessed(mailing: Server, mailbox: MailBox) -> None:
    await request(mailing, "/register", "alice@example.org")
    link = mailbox.link()
    assert (await mailing.client.post(link[:-3] + "xyz")).status_code == 404
    assert (await mailing.client.post(link.replace(SECRET.replace("=", "%3D"), "guess"))).status_code == 404
    await mailing.clock.advance(3_600.0)
    assert (await mailing.client.post(link)).status_code == 404


async def test_registration_with_an_address(make_server: Make, settings: dict[str, Any], mailbox: MailBox) -> None:
    server = make_server(registrations_require_3pid=["email"], **settings)
    body = {"username": "alice", "password": PASSWORD}
    asked = (await server.post("/register", body)).json()
    assert asked["flows"] == [{"stages": ["m.login.email.identity"]}]
    sid = (await request(server, "/register", "alice@example.org"))[1]["sid"]
    auth = {"session": asked["session"], **credentials(sid)}
    early = await server.post("/register", {**body, "auth": auth})
    assert (early.status_code, early.json()["errcode"]) == (401, "M_THREEPID_AUTH_FAILED")
    await server.client.post(mailbox.link())
    alice = server.session((await server.post("/register", {**body, "auth": auth})).raise_for_status().json())
    found = (await alice.get("/account/3pid")).json()["threepids"]
    assert [one["address"] for one in found] == ["alice@example.org"]


async def test_a_proof_is_for_one_purpose(mailing: Server, mailbox: MailBox) -> None:
    await mailing.register("alice")
    sid = await prove(mailing, mailbox, "/register", "bob@example.org")
    reset = {"new_password": "new password", "auth": credentials(sid)}
    assert (await mailing.post("/account/password", reset)).json()["errcode"] == "M_THREEPID_AUTH_FAILED"


async def test_a_new_password_by_mail(mailing: Server, mailbox: MailBox) -> None:
    alice = await mailing.register("alice")
    assert await add(mailing, mailbox, alice, "alice@example.org") == (200, {})
    status, unknown = await request(mailing, "/account/password", "nobody@example.org")
    assert (status, unknown["errcode"]) == (400, "M_THREEPID_NOT_FOUND")
    asked = await mailing.post("/account/password", {"new_password": "new password"})
    assert (asked.status_code, asked.json()["flows"]) == (401, [{"stages": ["m.login.email.identity"]}])
    sid = await prove(mailing, mailbox, "/account/password", "alice@example.org")
    assert mailbox.mails[-1]["Subject"] == "[test.example] Password reset"
    auth = {"session": asked.json()["session"], **credentials(sid)}
    done = await mailing.post("/account/password", {"new_password": "new password", "auth": auth})
    assert done.json() == {}
    assert (await alice.get("/account/whoami")).json()["errcode"] == "M_UNKNOWN_TOKEN"
    again = await mailing.post("/account/password", {"new_password": "third password", "auth": credentials(sid)})
    assert again.status_code == 401
    by_address = {"type": "m.id.thirdparty", "medium": "email", "address": "ALICE@example.org"}
    login = {"type": "m.login.password", "identifier": by_address, "password": "new password"}
    assert (await mailing.post("/login", login)).json()["user_id"] == alice.user_id
    wrong = await mailing.post("/login", {**login, "password": PASSWORD})
    assert (wrong.status_code, wrong.json()["errcode"]) == (403, "M_FORBIDDEN")


async def test_closing_the_account_frees_the_address(mailing: Server, mailbox: MailBox) -> None:
    alice = await mailing.register("alice")
    await add(mailing, mailbox, alice, "alice@example.org")
    closed = await alice.post("/account/deactivate", {"auth": password_auth(alice.user_id)})
    assert closed.json() == {"id_server_unbind_result": "success"}
    assert (await request(mailing, "/register", "alice@example.org", 7))[0] == 200


async def test_what_is_refused(make_server: Make, settings: dict[str, Any], mailbox: MailBox) -> None:
    server = make_server(
        allowed_local_3pids=[{"medium": "email", "pattern": r".*@example\.org$"}],
        rates={"rc_3pid_validation": Rate(0.01, 7)},
        **settings,
    )
    refused = await request(server, "/register", "alice@elsewhere.org")
    assert (refused[0], refused[1]["errcode"]) == (403, "M_THREEPID_DENIED")
    for fields, errcode in (
        ({"email": "no address"}, "M_INVALID_PARAM"),
        ({"email": "a@b\r\nBcc: c@d"}, "M_INVALID_PARAM"),
        ({"client_secret": "ä"}, "M_INVALID_PARAM"),
        ({"send_attempt": "1"}, "M_BAD_JSON"),
        ({"send_attempt": None}, "M_MISSING_PARAM"),
    ):
        body = {"client_secret": SECRET, "email": "a@example.org", "send_attempt": 1, **fields}
        assert (await server.post("/register/email/requestToken", body)).json()["errcode"] == errcode
    mailbox.is_full = True
    assert (await request(server, "/register", "alice@example.org"))[0] == 500
    for attempt in range(2, 8):
        await request(server, "/register", "alice@example.org", attempt)
    assert (await request(server, "/register", "alice@example.org", 9))[1]["errcode"] == "M_LIMIT_EXCEEDED"


async def test_what_the_operator_keeps_to_himself(make_server: Make, settings: dict[str, Any]) -> None:
    fixed = make_server(enable_3pid_changes=False, **settings)
    alice = await fixed.register("alice")
    address = {"medium": "email", "address": "alice@example.org"}
    assert (await alice.post("/account/3pid/delete", address)).json()["errcode"] == "M_FORBIDDEN"
    assert (await request(fixed, "/account/3pid", "alice@example.org"))[0] == 403
    silent = make_server(request_token_inhibit_3pid_errors=True, **settings)
    status, reply = await request(silent, "/account/password", "nobody@example.org")
    assert (status, set(reply)) == (200, {"sid"})


async def test_a_server_without_mail(server: Server) -> None:
    for what in ("/register", "/account/password", "/account/3pid"):
        status, refused = await request(server, what, "alice@example.org")
        assert (status, refused["errcode"]) == (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
        number = {"client_secret": SECRET, "country": "GB", "phone_number": "7700900000", "send_attempt": 1}
        refused = (await server.post(f"{what}/msisdn/requestToken", number)).json()
        assert refused["errcode"] == "M_THREEPID_MEDIUM_NOT_SUPPORTED"
    assert (await server.client.post(f"{API}/account/password", json={})).json()["errcode"] == "M_MISSING_TOKEN"

"""Application services: their users, whom they act as, and whether they can be reached."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from gateway_server import PASSWORD, Server

Make = Callable[..., Server]
TOKEN = {"Authorization": "Bearer as-token-of-irc"}
LOGIN = "m.login.application_service"
PING = "/_matrix/client/v1/appservice/irc/ping"


@pytest.fixture
async def bridge() -> AsyncIterator[TestServer]:
    """The service itself, as far as it answers pings."""

    async def ping(request: web.Request) -> web.Response:
        right = request.headers["Authorization"] == "Bearer hs-token-of-irc"
        asked = await request.json()
        return web.json_response({}, status=200 if right and asked != {"transaction_id": "no"} else 403)

    app = web.Application()
    app.router.add_post("/_matrix/app/v1/ping", ping)
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


@pytest.fixture
def bridged(make_server: Make, bridge: TestServer, tmp_path: Path) -> Server:
    registration = {
        "id": "irc",
        "url": str(bridge.make_url("/")),
        "as_token": "as-token-of-irc",
        "hs_token": "hs-token-of-irc",
        "sender_localpart": "_irc_bot",
        "namespaces": {"users": [{"exclusive": True, "regex": "@_irc_.*"}]},
    }
    (tmp_path / "irc.yaml").write_text(yaml.safe_dump(registration))
    return make_server(app_service_config_files=[tmp_path / "irc.yaml"])


async def register(server: Server, name: str, **fields: Any) -> httpx.Response:
    return await server.post("/register", {"type": LOGIN, "username": name, **fields}, headers=TOKEN)


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["errcode"]


async def test_a_service_registers_and_logs_in_its_users(bridged: Server) -> None:
    made = await register(bridged, "_irc_bob", inhibit_login=True)
    assert made.json() == {"user_id": "@_irc_bob:test.example", "home_server": "test.example"}
    assert refusal(await register(bridged, "_irc_bob")) == (400, "M_USER_IN_USE")
    assert refusal(await register(bridged, "bob")) == (400, "M_EXCLUSIVE")
    assert {"type": LOGIN} in (await bridged.get("/login")).json()["flows"]
    login = {"type": LOGIN, "identifier": {"type": "m.id.user", "user": "_irc_bob"}}
    bob = bridged.session((await bridged.post("/login", login, headers=TOKEN)).raise_for_status().json())
    assert (await bob.get("/account/whoami")).json()["user_id"] == "@_irc_bob:test.example"
    other = {"type": LOGIN, "identifier": {"type": "m.id.user", "user": "alice"}}
    assert refusal(await bridged.post("/login", other, headers=TOKEN)) == (400, "M_EXCLUSIVE")
    absent = {"type": LOGIN, "identifier": {"type": "m.id.user", "user": "_irc_nobody"}}
    assert refusal(await bridged.post("/login", absent, headers=TOKEN)) == (403, "M_FORBIDDEN")


async def test_only_a_service_does_that(bridged: Server) -> None:
    body = {"type": LOGIN, "username": "_irc_eve"}
    assert refusal(await bridged.post("/register", body)) == (401, "M_MISSING_TOKEN")
    wrong = {"Authorization": "Bearer as-token-of-nobody"}
    assert refusal(await bridged.post("/register", body, headers=wrong)) == (401, "M_UNKNOWN_TOKEN")
    alice = await bridged.register("alice")
    assert refusal(await alice.post("/register", body)) == (401, "M_UNKNOWN_TOKEN")
    people = {"username": "_irc_eve", "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    assert (await bridged.post("/register", people)).status_code == 400
    assert refusal(await bridged.get("/register/available", params={"username": "_irc_eve"}))[0] == 400


async def test_a_service_acts_as_its_users(bridged: Server) -> None:
    async def whoami(**query: str) -> httpx.Response:
        return await bridged.get("/account/whoami", params=query, headers=TOKEN)

    assert (await whoami()).json() == {"user_id": "@_irc_bot:test.example", "is_guest": False}
    assert refusal(await whoami(user_id="@_irc_bob:test.example")) == (403, "M_FORBIDDEN")
    device = (await register(bridged, "_irc_bob", device_id="BRIDGE")).json()
    assert device["device_id"] == "BRIDGE"
    assert (await whoami(user_id="@_irc_bob:test.example")).json()["user_id"] == "@_irc_bob:test.example"
    assert (await whoami(user_id="@_irc_bob:test.example", device_id="BRIDGE")).json()["device_id"] == "BRIDGE"
    assert refusal(await whoami(user_id="@_irc_bob:test.example", device_id="X")) == (400, "M_UNKNOWN_DEVICE")
    await bridged.register("alice")
    assert refusal(await whoami(user_id="@alice:test.example")) == (403, "M_FORBIDDEN")
    as_bob = {"user_id": "@_irc_bob:test.example"}
    name = f"/_matrix/client/v3/profile/{as_bob['user_id']}/displayname"
    changed = await bridged.client.put(name, params=as_bob, headers=TOKEN, json={"displayname": "Bob (IRC)"})
    assert changed.json() == {}
    gone = await bridged.client.delete("/_matrix/client/v3/devices/BRIDGE", params=as_bob, headers=TOKEN)
    assert gone.json() == {}
    users = await bridged.get("/_synapse/admin/v2/users", headers=TOKEN)
    assert refusal(users) == (403, "M_FORBIDDEN")


async def test_a_service_asks_whether_it_is_reached(bridged: Server, bridge: TestServer) -> None:
    reached = await bridged.post(PING, {"transaction_id": "meow"}, headers=TOKEN)
    assert (reached.status_code, set(reached.json())) == (200, {"duration_ms"})
    refused = await bridged.post(PING, {"transaction_id": "no"}, headers=TOKEN)
    assert (*refusal(refused), refused.json()["status"]) == (502, "M_BAD_STATUS", 403)
    assert refusal(await bridged.post(PING.replace("irc", "other"), {}, headers=TOKEN)) == (403, "M_FORBIDDEN")
    alice = await bridged.register("alice")
    assert refusal(await alice.post(PING)) == (401, "M_UNKNOWN_TOKEN")
    await bridge.close()
    assert refusal(await bridged.post(PING, {}, headers=TOKEN)) == (502, "M_CONNECTION_FAILED")

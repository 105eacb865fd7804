"""Binding addresses at an identity server, over real TLS, and having it forget them."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
from gateway_server import Server, password_auth

from matrixcore.signing import SigningKey, verify_json
from services.gateway.app import create_gateway_app
from tests.fixtures.identity_server import TOKEN, IdentityServerDouble, running_identity_server

KEY = SigningKey("1", b"\x01" * 32)
ADDRESS = {"medium": "email", "address": "alice@example.org"}


@pytest.fixture
async def identity(tmp_path: Path) -> AsyncIterator[IdentityServerDouble]:
    async with running_identity_server(tmp_path, ip_network("127.0.0.0/8")) as double:
        double.proven["proven"] = ("email", "alice@example.org")
        yield double


@pytest.fixture
async def calling(server: Server, identity: IdentityServerDouble) -> AsyncIterator[Server]:
    """A server that reaches the identity server and has a key to sign with."""
    gateway = replace(server.gateway, calls=identity.calls, signing_key=KEY)
    transport = httpx.ASGITransport(create_gateway_app(gateway), client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test.example") as client:
        yield replace(server, gateway=gateway, client=client)


def binding(identity: IdentityServerDouble, sid: str = "proven", **fields: str) -> dict[str, str]:
    body = {"sid": sid, "client_secret": "secret", "id_server": identity.name, "id_access_token": TOKEN}
    return {**body, **fields}


async def test_an_address_is_bound_and_unbound(calling: Server, identity: IdentityServerDouble) -> None:
    alice = await calling.register("alice")
    assert (await alice.post("/account/3pid/bind", binding(identity))).json() == {}
    assert identity.owners == {("email", "alice@example.org"): alice.user_id}
    assert (await alice.get("/account/3pid")).json() == {"threepids": []}  # bound is not added
    unbound = await alice.post("/account/3pid/unbind", ADDRESS)
    assert unbound.json() == {"id_server_unbind_result": "success"}
    ((header, body),) = identity.unbinds
    assert body == {"mxid": alice.user_id, "threepid": ADDRESS}
    found = re.fullmatch(r'X-Matrix origin="test.example",destination="(.+)",key="(ed25519:1)",sig="(.+)"', header)
    assert found is not None
    signed = {
        "method": "POST",
        "uri": "/_matrix/identity/v2/3pid/unbind",
        "origin": "test.example",
        "destination": identity.name,
        "content": body,
        "signatures": {"test.example": {found[2]: found[3]}},
    }
    assert found[1] == identity.name
    assert verify_json(signed, "test.example", {"ed25519:1": KEY.public_key})
    again = await alice.post("/account/3pid/unbind", ADDRESS)
    assert again.json() == {"id_server_unbind_result": "no-support"}  # nothing is known to be bound


async def test_the_older_path_binds_too(calling: Server, identity: IdentityServerDouble) -> None:
    alice = await calling.register("alice")
    assert (await alice.post("/account/3pid", {"three_pid_creds": binding(identity)})).json() == {}
    assert identity.owners
    assert (await alice.post("/account/3pid", {})).json()["errcode"] == "M_BAD_JSON"


async def test_refusals_are_passed_on(calling: Server, identity: IdentityServerDouble) -> None:
    alice = await calling.register("alice")
    refused = await alice.post("/account/3pid/bind", binding(identity, "unproven"))
    assert (refused.status_code, refused.json()["errcode"]) == (400, "M_SESSION_NOT_VALIDATED")
    # Not as 401, or the client would take its own session for ended.
    refused = await alice.post("/account/3pid/bind", binding(identity, id_access_token="wrong"))
    assert (refused.status_code, refused.json()["errcode"]) == (403, "M_UNAUTHORIZED")
    away = await alice.post("/account/3pid/bind", binding(identity, id_server="127.0.0.1:1"))
    assert away.status_code == 502
    missing = {name: value for name, value in binding(identity).items() if name != "id_access_token"}
    assert (await alice.post("/account/3pid/bind", missing)).json()["errcode"] == "M_MISSING_PARAM"


async def test_inner_addresses_are_not_called(server: Server, identity: IdentityServerDouble) -> None:
    alice = await server.register("alice")
    assert (await alice.post("/account/3pid/bind", binding(identity))).status_code == 502
    assert identity.owners == {}


async def test_an_identity_server_that_does_not_unbind(calling: Server, identity: IdentityServerDouble) -> None:
    alice = await calling.register("alice")
    await alice.post("/account/3pid/bind", binding(identity))
    identity.unbind_status = 501
    deleted = await alice.post("/account/3pid/delete", ADDRESS)
    assert deleted.json() == {"id_server_unbind_result": "no-support"}


async def test_closing_the_account_unbinds(calling: Server, identity: IdentityServerDouble) -> None:
    alice = await calling.register("alice")
    await alice.post("/account/3pid/bind", binding(identity))
    closed = await alice.post("/account/deactivate", {"auth": password_auth(alice.user_id)})
    assert closed.json() == {"id_server_unbind_result": "success"}
    assert len(identity.unbinds) == 1

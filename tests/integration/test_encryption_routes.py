"""The encryption endpoints over HTTP: paths, bodies, answers. The work behind them has tests of its own."""

from collections.abc import AsyncIterator
from types import SimpleNamespace

import httpx
import pytest
from key_material import ALICE, BOB, SERVER, Device, Identity, RecordingFanout, add_devices
from starlette.requests import Request

from matrixcore.identifiers import ServerName, UserId
from services.gateway import cross_signing, keys, room_keys, send_to_device
from services.gateway.login_attempts import LoginAttempts
from services.gateway.passwords import Passwords
from services.gateway.routing import mounted
from services.gateway.uia import UserInteractiveAuth
from tessera.clock import FakeClock
from tessera.config import Settings
from tessera.http.app import create_app
from tessera.http.authentication import Requester, access_token_of
from tessera.http.limits import LocalRateLimits
from tessera.ids import IdSource
from tessera.storage import to_device
from tessera.storage.database import Database

V3 = "/_matrix/client/v3"
PASSWORD = "correct horse"


class TokenNamesSession:
    """Access tokens of the form localpart/DEVICE."""

    async def authenticate(self, request: Request) -> Requester:
        localpart, _, device_id = access_token_of(request).partition("/")
        return Requester(UserId(f"@{localpart}:{SERVER}"), device_id)


@pytest.fixture
async def alice(accounts: Database) -> AsyncIterator[httpx.AsyncClient]:
    """Alice's device A1; Bob has B1."""
    await add_devices(accounts, {ALICE: ["A1"], BOB: ["B1"]})
    clock, ids, passwords = FakeClock(), IdSource.seeded(1), Passwords(time_cost=1, memory_kib=64)
    password_hash = await passwords.hash(PASSWORD)
    await accounts.execute("UPDATE accounts.users SET password_hash = $2 WHERE user_id = $1", ALICE, password_hash)
    attempts = LoginAttempts(LocalRateLimits(clock, {}))
    gateway = SimpleNamespace(
        accounts=accounts,
        fanout=RecordingFanout(),
        clock=clock,
        server_name=ServerName(SERVER),
        settings=Settings.for_tests(server_name=SERVER),
        peers=None,
        remote_keys=None,
        uia=UserInteractiveAuth(accounts, clock, ids, passwords, attempts, ServerName(SERVER)),
    )
    app = create_app(
        routes=[*keys.routes, *send_to_device.routes],
        routers=[mounted(cross_signing.router), mounted(room_keys.router)],
        state={"gateway": gateway, "authenticator": TokenNamesSession()},
        ids=ids,
    )
    headers = {"authorization": "Bearer alice/A1"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway.test", headers=headers
    ) as client:
        yield client
    passwords.close()


async def test_keys_up_and_down(alice: httpx.AsyncClient) -> None:
    phone = Device(ALICE, "A1")
    body = {"device_keys": phone.keys, "one_time_keys": phone.one_time_keys(["k1", "k2"])}
    reply = await alice.post("/_matrix/client/r0/keys/upload", json=body)
    assert (reply.status_code, reply.json()) == (200, {"one_time_key_counts": {"signed_curve25519": 2}})
    reply = await alice.post(f"{V3}/keys/query", json={"device_keys": {ALICE: []}, "timeout": 10_000})
    assert reply.json() == {
        "device_keys": {ALICE: {"A1": {**phone.keys, "unsigned": {"device_display_name": "A1's phone"}}}},
        "failures": {},
        "master_keys": {},
        "self_signing_keys": {},
        "user_signing_keys": {},
    }
    claim = {"one_time_keys": {ALICE: {"A1": "signed_curve25519"}}}
    reply = await alice.post(f"{V3}/keys/claim", json=claim)
    assert reply.json() == {"one_time_keys": {ALICE: {"A1": phone.one_time_keys(["k1"])}}, "failures": {}} or (
        reply.json()["one_time_keys"] == {ALICE: {"A1": phone.one_time_keys(["k2"])}}
    )
    assert (await alice.post(f"{V3}/keys/upload", json={})).json() == {"one_time_key_counts": {"signed_curve25519": 1}}


@pytest.mark.parametrize("path", ["keys/upload", "keys/query", "keys/claim", "keys/device_signing/upload"])
async def test_bad_bodies_and_tokens(alice: httpx.AsyncClient, path: str) -> None:
    reply = await alice.post(f"{V3}/{path}", content=b"no json")
    assert (reply.status_code, reply.json()["errcode"]) == (400, "M_NOT_JSON")
    field = {"keys/query": "device_keys", "keys/claim": "one_time_keys", "keys/device_signing/upload": "master_key"}
    reply = await alice.post(f"{V3}/{path}", json={field.get(path, "device_keys"): "text"})
    assert (reply.status_code, reply.json()["errcode"]) == (400, "M_INVALID_PARAM")
    reply = await alice.post(f"{V3}/{path}", json={}, headers={"authorization": ""})
    assert (reply.status_code, reply.json()["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_new_cross_signing_keys_take_the_password(alice: httpx.AsyncClient) -> None:
    path = f"{V3}/keys/device_signing/upload"
    first, second = Identity(ALICE), Identity(ALICE)
    for _ in range(2):
        assert (await alice.post(path, json=first.upload)).json() == {}
    challenge = await alice.post(path, json=second.upload)
    assert challenge.status_code == 401
    assert challenge.json()["flows"] == [{"stages": ["m.login.password"]}]
    auth = {
        "type": "m.login.password",
        "session": challenge.json()["session"],
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": "wrong",
    }
    assert (await alice.post(path, json={**second.upload, "auth": auth})).status_code == 401
    reply = await alice.post(path, json={**second.upload, "auth": {**auth, "password": PASSWORD}})
    assert (reply.status_code, reply.json()) == (200, {})
    seen = (await alice.post(f"{V3}/keys/query", json={"device_keys": {ALICE: []}})).json()
    assert seen["master_keys"] == {ALICE: second.master_key}
    assert (await alice.post(f"{V3}/keys/signatures/upload", json={ALICE: {"A9": {}}})).json() == {
        "failures": {ALICE: {"A9": {"errcode": "M_NOT_FOUND", "error": "Unknown key"}}}
    }


async def test_send_to_device(alice: httpx.AsyncClient, accounts: Database) -> None:
    path = f"{V3}/sendToDevice/m.room.encrypted/txn%2F1"
    for _ in range(2):
        reply = await alice.put(path, json={"messages": {BOB: {"*": {"secret": 1}}}})
        assert (reply.status_code, reply.json()) == (200, {})
    async with accounts.reading() as tx:
        (message,) = await to_device.list_messages(tx, BOB, "B1", 0)
    assert (message.sender, message.type, message.content) == (ALICE, "m.room.encrypted", b'{"secret":1}')
    reply = await alice.put(path, json={})
    assert (reply.status_code, reply.json()["errcode"]) == (400, "M_INVALID_PARAM")


async def test_key_backup(alice: httpx.AsyncClient) -> None:
    versions, stored = f"{V3}/room_keys/version", f"{V3}/room_keys/keys"
    assert (await alice.get(versions)).json()["errcode"] == "M_NOT_FOUND"
    info = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "abc"}}
    assert (await alice.post(versions, json=info)).json() == {"version": "1"}
    room, query = "!room:example.org", {"version": "1"}
    key = {"first_message_index": 1, "forwarded_count": 0, "is_verified": True, "session_data": {"mac": "x"}}
    assert (await alice.put(f"{stored}/{room}/a%2Fb", params=query, json=key)).json() == {"etag": "1", "count": 1}
    assert (await alice.get(f"{stored}/{room}/a%2Fb", params=query)).json() == key
    assert (await alice.get(f"{stored}/{room}", params=query)).json() == {"sessions": {"a/b": key}}
    assert (await alice.get(stored, params=query)).json() == {"rooms": {room: {"sessions": {"a/b": key}}}}
    assert (await alice.get(versions)).json() == {**info, "version": "1", "count": 1, "etag": "1"}
    missing = await alice.get(f"{stored}/{room}/no", params=query)
    assert (missing.status_code, missing.json()["errcode"]) == (404, "M_NOT_FOUND")
    assert (await alice.get(stored)).json()["errcode"] == "M_MISSING_PARAM"
    assert (await alice.get(stored, params={"version": "7"})).status_code == 404
    await alice.post(versions, json=info)
    wrong = await alice.put(f"{stored}/{room}", params=query, json={"sessions": {}})
    assert wrong.status_code == 403
    assert wrong.json()["errcode"] == "M_WRONG_ROOM_KEYS_VERSION"
    assert wrong.json()["current_version"] == "2"
    assert (await alice.delete(f"{stored}/{room}", params=query)).json() == {"etag": "2", "count": 0}
    assert (await alice.put(f"{versions}/1", json={**info, "version": "2"})).json()["errcode"] == "M_INVALID_PARAM"
    for _ in range(2):
        assert (await alice.delete(f"{versions}/2")).json() == {}
    assert (await alice.get(versions)).json()["version"] == "1"

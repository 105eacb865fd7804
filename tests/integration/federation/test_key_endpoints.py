"""The keys that a whole server publishes, its own and as a notary. Spec: S-S API §Retrieving server keys."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from key_world import DAY_MS, KeyPeer

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.identifiers import ServerName
from matrixcore.server_keys import ServerKey, read_key_document
from matrixcore.signing import verify_json
from tessera.clock import FakeClock, SystemClock
from tessera.storage.database import Database
from tessera.storage.server_keys import StoredDocument, set_key_documents, set_server_keys
from tests.fixtures.whole_server import SERVER_NAME, WholeServer, running_whole_server


@pytest.fixture
async def server(dsn: str, tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with running_whole_server(dsn, tmp_path) as running:
        yield running


async def ask(server: WholeServer, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    answer = await server.http.request(method, f"/_matrix/key/v2{path}", json=body)
    return answer.status_code, answer.json()


async def test_our_own_keys(server: WholeServer) -> None:
    now_ms = SystemClock().now_ms()
    for path in ("/server", "/server/ed25519:a"):
        status, document = await ask(server, "GET", path)
        assert status == 200
        read = read_key_document(document, now_ms=now_ms)
        assert read.server_name == SERVER_NAME
        assert now_ms + DAY_MS - 60_000 < read.valid_until_ts <= now_ms + DAY_MS + 60_000
    status, answer = await ask(server, "GET", f"/query/{SERVER_NAME}")
    assert status == 200
    assert answer == {"server_keys": [document]}


async def test_a_notary_passes_on_what_is_still_good_and_signs_it(server: WholeServer, accounts: Database) -> None:
    _, own = await ask(server, "GET", "/server")
    keys = {key_id: key.public_key for key_id, key in read_key_document(own, now_ms=0).keys.items()}
    now_ms = SystemClock().now_ms()
    dead = KeyPeer(ServerName("dead.invalid"), FakeClock(now_ms))
    document = dead.own_document()
    async with accounts.transaction() as tx:
        await set_key_documents(
            tx, {dead.name: StoredDocument(encode_canonical_json(document), document["valid_until_ts"], now_ms)}
        )
    question = {"server_keys": {dead.name: {dead.key.key_id: {}}, "unknown.invalid": {}}}
    status, answer = await ask(server, "POST", "/query", question)
    assert status == 200
    (passed_on,) = answer["server_keys"]
    assert verify_json(passed_on, SERVER_NAME, keys)
    del passed_on["signatures"][SERVER_NAME]
    assert passed_on == document
    # It cannot be renewed, and is passed on all the same.
    status, answer = await ask(server, "GET", f"/query/{dead.name}?minimum_valid_until_ts={now_ms + 10 * DAY_MS}")
    assert len(answer["server_keys"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "errcode"),
    [
        ("GET", "/query/not a name", None, "M_INVALID_PARAM"),
        ("GET", "/query/a.invalid?minimum_valid_until_ts=soon", None, "M_INVALID_PARAM"),
        ("GET", "/query/a.invalid?minimum_valid_until_ts=-1", None, "M_INVALID_PARAM"),
        ("POST", "/query", {}, "M_BAD_JSON"),
        ("POST", "/query", {"server_keys": []}, "M_BAD_JSON"),
        ("POST", "/query", {"server_keys": {"not a name": {}}}, "M_BAD_JSON"),
        ("POST", "/query", {"server_keys": {"a.invalid": 5}}, "M_BAD_JSON"),
        ("POST", "/query", {"server_keys": {f"s{n}.invalid": {} for n in range(201)}}, "M_BAD_JSON"),
        ("POST", "/server", {}, "M_UNRECOGNIZED"),
    ],
)
async def test_bad_questions(server: WholeServer, method: str, path: str, body: Any, errcode: str) -> None:
    status, answer = await ask(server, method, path, body)
    assert 400 <= status < 500
    assert answer["errcode"] == errcode
    assert (await ask(server, "POST", "/query", {"server_keys": {}})) == (200, {"server_keys": []})


async def test_keys_of_one_server_are_bounded(accounts: Database) -> None:
    name = ServerName("many.example")
    for start in range(0, 1200, 200):
        keys = {f"ed25519:{n}": ServerKey(bytes([n % 256]) * 32, n) for n in range(start, start + 200)}
        async with accounts.transaction() as tx:
            await set_server_keys(tx, {name: keys})
    left = await accounts.fetch("SELECT valid_until_ts FROM accounts.server_keys WHERE server_name = $1", name)
    assert sorted(row[0] for row in left) == list(range(700, 1200))


async def test_a_version_is_told_to_anybody(server: WholeServer) -> None:
    answer = await server.http.get("/_matrix/federation/v1/version")
    assert answer.json()["server"]["name"] == "Tessera"
    refused = await server.http.get("/_matrix/federation/v1/nothing")
    assert (refused.status_code, refused.json()["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_a_server_without_peers_answers_none(dsn: str, tmp_path: Path) -> None:
    async with running_whole_server(dsn, tmp_path, federation={"enabled": False}) as server:
        headers = {"Authorization": 'X-Matrix origin="a.invalid",key="ed25519:1",sig="abc"'}
        for method, path in (("GET", "event/$a"), ("PUT", "send/1"), ("GET", "publicRooms")):
            answer = await server.http.request(method, f"/_matrix/federation/v1/{path}", headers=headers)
            assert (answer.status_code, answer.json()["errcode"]) == (403, "M_FORBIDDEN"), path
        assert (await ask(server, "GET", "/server"))[0] == 200, "old events of ours can still be verified"

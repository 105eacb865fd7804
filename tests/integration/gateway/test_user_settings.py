"""What users keep on the server: account data, tags, filters, push rules, pushers; each change reaches their log."""

from typing import Any

import pytest
from gateway_server import Server, Session

from matrixcore.identifiers import UserId
from tessera.storage import account_data, threepids, user_log
from tessera.storage.user_log import UserLogKind

ALICE = "@alice:test.example"
ROOM = "!room:test.example"
DATA = f"/user/{ALICE}/account_data"
ROOM_DATA = f"/user/{ALICE}/rooms/{ROOM}/account_data"
TAGS = f"/user/{ALICE}/rooms/{ROOM}/tags"


@pytest.fixture
async def alice(server: Server) -> Session:
    return await server.register("alice")


async def _log(server: Server) -> list[tuple[int, str, str]]:
    async with server.accounts.reading() as tx:
        rows = await user_log.list_after(tx, ALICE, 0)  # type: ignore[arg-type]
    return [(row.kind, row.room_id, row.key) for row in rows]


async def test_account_data_is_kept_for_the_user_and_for_rooms(server: Server, alice: Session) -> None:
    assert (await alice.put(f"{DATA}/org.example", {"a": 0.5, "ü": [1, None]})).json() == {}
    assert (await alice.put(f"{ROOM_DATA}/org.example", {"b": 2})).json() == {}
    assert (await alice.get(f"{DATA}/org.example")).json() == {"a": 0.5, "ü": [1, None]}
    assert (await alice.get(f"{ROOM_DATA}/org.example")).json() == {"b": 2}
    assert (await alice.get(f"{DATA}/org.other")).json()["errcode"] == "M_NOT_FOUND"
    assert await _log(server) == [
        (UserLogKind.ACCOUNT_DATA, "", "org.example"),
        (UserLogKind.ROOM_ACCOUNT_DATA, ROOM, "org.example"),
    ]
    assert [wake.position for wake in server.fanout.user_wakes] == [1, 2]
    async with server.accounts.reading() as tx:
        assert [row.position for row in await account_data.list_all(tx, ALICE)] == [1, 2]  # type: ignore[arg-type]


async def test_the_ignore_list_has_an_entry_of_its_own(server: Server, alice: Session) -> None:
    await alice.put(f"{DATA}/m.ignored_user_list", {"ignored_users": {"@bob:x": {}}})
    assert [kind for kind, _, _ in await _log(server)] == [UserLogKind.ACCOUNT_DATA, UserLogKind.IGNORED_USERS]


@pytest.mark.parametrize("data_type", ["m.fully_read", "m.push_rules"])
async def test_types_that_the_server_manages(alice: Session, data_type: str) -> None:
    for base in (DATA, ROOM_DATA):
        refused = await alice.put(f"{base}/{data_type}", {})
        assert (refused.status_code, refused.json()["errcode"]) == (405, "M_BAD_JSON")


@pytest.mark.parametrize("base", [DATA, ROOM_DATA])
async def test_account_data_can_be_deleted(server: Server, alice: Session, base: str) -> None:
    path = f"/_matrix/client/unstable/org.matrix.msc3391{base}/org.example"
    assert (await alice.delete(path)).json() == {}
    assert await _log(server) == []
    await alice.put(f"{base}/org.example", {"a": 1})
    assert (await alice.delete(path)).json() == {}
    assert (await alice.get(f"{base}/org.example")).json()["errcode"] == "M_NOT_FOUND"
    assert len(await _log(server)) == 2
    async with server.accounts.reading() as tx:
        assert await account_data.list_all(tx, ALICE) == []  # type: ignore[arg-type]
    managed = await alice.delete(path.replace("org.example", "m.push_rules"))
    assert (managed.status_code, managed.json()["errcode"]) == (405, "M_BAD_JSON")
    bob = await server.register("bob")
    assert (await bob.delete(path)).json()["errcode"] == "M_FORBIDDEN"


async def test_push_rules_can_be_read_as_account_data(alice: Session) -> None:
    rules = (await alice.get(f"{DATA}/m.push_rules")).json()
    assert rules == (await alice.get("/pushrules/")).json()


async def test_account_data_of_others_and_bad_bodies(server: Server, alice: Session) -> None:
    bob = await server.register("bob")
    assert (await bob.get(f"{DATA}/org.example")).json()["errcode"] == "M_FORBIDDEN"
    assert (await bob.put(f"{DATA}/org.example", {})).status_code == 403
    assert (await alice.put(f"{DATA}/org.example", [1])).json()["errcode"] == "M_BAD_JSON"
    bad_room = await alice.put(f"/user/{ALICE}/rooms/nonsense/account_data/x", {})
    assert (bad_room.status_code, bad_room.json()["errcode"]) == (400, "M_INVALID_PARAM")
    nul = await alice.put(f"{DATA}/org.example", {"a": "\0"})
    assert (nul.status_code, nul.json()["errcode"]) == (400, "M_BAD_JSON")


async def test_tags(server: Server, alice: Session) -> None:
    assert (await alice.get(TAGS)).json() == {"tags": {}}
    assert (await alice.put(f"{TAGS}/m.favourite", {"order": 0.25})).json() == {}
    assert (await alice.put(f"{TAGS}/u.Work", {})).json() == {}
    assert (await alice.put(f"{TAGS}/u.Work", {})).json() == {}
    assert (await alice.get(TAGS)).json() == {"tags": {"m.favourite": {"order": 0.25}, "u.Work": {}}}
    assert (await alice.get(f"{ROOM_DATA}/m.tag")).json() == (await alice.get(TAGS)).json()
    assert (await alice.delete(f"{TAGS}/m.favourite")).json() == {}
    assert (await alice.delete(f"{TAGS}/m.favourite")).json() == {}
    assert (await alice.get(TAGS)).json() == {"tags": {"u.Work": {}}}
    assert await _log(server) == [(UserLogKind.ROOM_ACCOUNT_DATA, ROOM, "m.tag")] * 3


@pytest.mark.parametrize(
    ("tag", "body", "errcode"),
    [
        ("x" * 256, {}, "M_INVALID_PARAM"),
        ("u.x", {"order": "first"}, "M_BAD_JSON"),
        ("u.x", {"order": True}, "M_BAD_JSON"),
        ("u.x", {"order": 2}, "M_INVALID_PARAM"),
    ],
)
async def test_bad_tags(alice: Session, tag: str, body: dict[str, Any], errcode: str) -> None:
    refused = await alice.put(f"{TAGS}/{tag}", body)
    assert (refused.status_code, refused.json()["errcode"]) == (400, errcode)


async def test_filters(server: Server, alice: Session) -> None:
    path = f"/user/{ALICE}/filter"
    definition = {"room": {"timeline": {"limit": 10}}, "unknown": "kept"}
    first = (await alice.post(path, definition)).json()["filter_id"]
    second = (await alice.post(path, {"presence": {"types": []}})).json()["filter_id"]
    assert first != second
    assert (await alice.post(path, definition)).json()["filter_id"] == first
    assert (await alice.get(f"{path}/{first}")).json() == definition
    for unknown in ("999", "x", "9" * 30, "-1"):
        assert (await alice.get(f"{path}/{unknown}")).json()["errcode"] == "M_NOT_FOUND"
    bad = await alice.post(path, {"room": {"timeline": {"limit": "ten"}}})
    assert (bad.status_code, bad.json()["errcode"]) == (400, "M_INVALID_PARAM")
    bob = await server.register("bob")
    assert (await bob.get(f"{path}/{first}")).status_code == 403


async def test_push_rules_are_added_moved_switched_and_deleted(server: Server, alice: Session) -> None:
    rules = "/pushrules/global"
    for name in ("one", "two"):
        assert (await alice.put(f"{rules}/content/{name}", {"pattern": name, "actions": ["notify"]})).json() == {}
    assert (await alice.request("PUT", f"{rules}/content/one?before=two", {"pattern": "1", "actions": []})).json() == {}
    mine = (await alice.get(f"{rules}/")).json()["content"]
    assert [rule["rule_id"] for rule in mine][:2] == ["one", "two"]
    assert (await alice.put(f"{rules}/content/one/enabled", {"enabled": False})).json() == {}
    assert (await alice.get(f"{rules}/content/one/enabled")).json() == {"enabled": False}
    assert (await alice.put(f"{rules}/underride/.m.rule.message/actions", {"actions": []})).json() == {}
    assert (await alice.get(f"{rules}/underride/.m.rule.message/actions")).json() == {"actions": []}
    assert (await alice.get(f"{rules}/underride/.m.rule.message")).json()["default"] is True
    assert (await alice.delete(f"{rules}/content/one")).json() == {}
    gone = await alice.get(f"{rules}/content/one")
    assert (gone.status_code, gone.json()["errcode"]) == (404, "M_NOT_FOUND")
    assert await _log(server) == [(UserLogKind.PUSH_RULES, "", "")] * 6
    # What changes nothing tells nobody.
    await alice.put(f"{rules}/underride/.m.rule.message/actions", {"actions": []})
    assert len(await _log(server)) == 6


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "errcode"),
    [
        ("PUT", "content/.dot", {"pattern": "x", "actions": []}, 400, "M_INVALID_PARAM"),
        ("PUT", "content/back%5Cslash", {"pattern": "x", "actions": []}, 400, "M_INVALID_PARAM"),
        ("PUT", "content/sl%2Fash", {"pattern": "x", "actions": []}, 400, "M_INVALID_PARAM"),
        ("PUT", "content/x", {"actions": []}, 400, "M_INVALID_PARAM"),
        ("PUT", "content/x", {"pattern": "x"}, 400, "M_INVALID_PARAM"),
        ("PUT", "strange/x", {"pattern": "x", "actions": []}, 400, "M_INVALID_PARAM"),
        ("PUT", "content/x?after=none", {"pattern": "x", "actions": []}, 400, "M_UNKNOWN"),
        ("PUT", "content/x/enabled", {"enabled": True}, 404, "M_NOT_FOUND"),
        ("PUT", "content/x/enabled", {"enabled": "yes"}, 400, "M_BAD_JSON"),
        ("PUT", "content/x/actions", {"actions": []}, 404, "M_NOT_FOUND"),
        ("DELETE", "content/x", None, 404, "M_NOT_FOUND"),
        ("GET", "content/x", None, 404, "M_NOT_FOUND"),
        ("GET", "strange/x", None, 400, "M_INVALID_PARAM"),
    ],
)
async def test_bad_push_rules(
    alice: Session, method: str, path: str, body: dict[str, Any] | None, status: int, errcode: str
) -> None:
    refused = await alice.request(method, f"/pushrules/global/{path}", body)
    assert (refused.status_code, refused.json()["errcode"]) == (status, errcode)


PUSHER = {
    "kind": "http",
    "app_id": "org.example.app",
    "pushkey": "key",
    "app_display_name": "App",
    "device_display_name": "Phone",
    "lang": "en",
    "data": {"url": "https://push.example.org/_matrix/push/v1/notify", "format": "event_id_only"},
}


ENABLED, DEVICE = "org.matrix.msc3881.enabled", "org.matrix.msc3881.device_id"


async def test_pushers_are_set_replaced_and_deleted(alice: Session) -> None:
    assert (await alice.post("/pushers/set", PUSHER)).json() == {}
    assert (await alice.post("/pushers/set", {**PUSHER, "lang": "de", "profile_tag": "x"})).json() == {}
    shown = {**PUSHER, "lang": "de", "profile_tag": "x", ENABLED: True, DEVICE: alice.device_id}
    assert (await alice.get("/pushers")).json() == {"pushers": [shown]}
    body = {"kind": None, "app_id": PUSHER["app_id"], "pushkey": PUSHER["pushkey"]}
    assert (await alice.post("/pushers/set", body)).json() == {}
    assert (await alice.get("/pushers")).json() == {"pushers": []}


async def test_a_key_belongs_to_one_user_unless_it_is_appended(server: Server, alice: Session) -> None:
    bob = await server.register("bob")
    await alice.post("/pushers/set", PUSHER)
    await bob.post("/pushers/set", {**PUSHER, "append": True})
    assert len((await alice.get("/pushers")).json()["pushers"]) == 1
    await bob.post("/pushers/set", PUSHER)
    assert (await alice.get("/pushers")).json() == {"pushers": []}
    assert len((await bob.get("/pushers")).json()["pushers"]) == 1


@pytest.mark.parametrize(
    ("change", "errcode"),
    [
        ({"app_id": None}, "M_MISSING_PARAM"),
        ({"data": None}, "M_MISSING_PARAM"),
        ({"lang": None}, "M_MISSING_PARAM"),
        ({"kind": "pigeon"}, "M_INVALID_PARAM"),
        ({"kind": 5}, "M_BAD_JSON"),
        ({"pushkey": "x" * 600}, "M_INVALID_PARAM"),
        ({"app_id": "x" * 65}, "M_INVALID_PARAM"),
        ({"data": {}}, "M_MISSING_PARAM"),
        ({"data": {"url": "ftp://x/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://push.example.org/elsewhere"}}, "M_INVALID_PARAM"),
        ({"append": "yes"}, "M_BAD_JSON"),
    ],
)
async def test_bad_pushers(alice: Session, change: dict[str, Any], errcode: str) -> None:
    refused = await alice.post("/pushers/set", {**PUSHER, **change})
    assert (refused.status_code, refused.json()["errcode"]) == (400, errcode)


async def test_one_session_switches_the_pusher_of_another(server: Server, alice: Session) -> None:
    await alice.post("/pushers/set", PUSHER)
    other = await server.login("alice", "OTHER")
    assert (await other.post("/pushers/set", {**PUSHER, ENABLED: False})).json() == {}
    shown = (await other.get("/pushers")).json()["pushers"]
    assert [(pusher[ENABLED], pusher[DEVICE]) for pusher in shown] == [(False, alice.device_id)]
    await alice.post("/pushers/set", {**PUSHER, ENABLED: True})
    assert (await alice.get("/pushers")).json()["pushers"][0][ENABLED] is True
    wrong = await alice.post("/pushers/set", {**PUSHER, ENABLED: "no"})
    assert (wrong.status_code, wrong.json()["errcode"]) == (400, "M_BAD_JSON")


async def test_mails_go_to_an_address_of_the_account_alone(server: Server, alice: Session) -> None:
    wanted = {**PUSHER, "kind": "email", "app_id": "m.email", "pushkey": "Alice@Example.org", "data": {}}
    refused = await alice.post("/pushers/set", wanted)
    assert (refused.status_code, refused.json()["errcode"]) == (400, "M_THREEPID_NOT_FOUND")
    assert (await alice.post("/pushers/set", {**wanted, "pushkey": "nobody"})).json()["errcode"] == "M_INVALID_PARAM"
    async with server.accounts.transaction() as tx:
        await threepids.add_threepid(tx, UserId(ALICE), "email", "alice@example.org", validated_ts=1, now_ms=1)
    assert (await alice.post("/pushers/set", wanted)).json() == {}
    assert [one["pushkey"] for one in (await alice.get("/pushers")).json()["pushers"]] == ["alice@example.org"]
    async with server.accounts.transaction() as tx:
        await threepids.delete_threepid(tx, UserId(ALICE), "email", "alice@example.org")
    assert (await alice.get("/pushers")).json() == {"pushers": []}

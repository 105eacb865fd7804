"""Versions, capabilities, well-known documents, TURN, presence and the user directory."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path

from gateway_server import Server, Session

from matrixcore.identifiers import RoomId, UserId
from matrixcore.signing import SigningKey, encode_base64
from tessera.storage import directory
from tessera.storage.directory import RoomSummary

Make = Callable[..., Server]


async def test_versions(server: Server) -> None:
    reply = (await server.get("/_matrix/client/versions")).json()
    assert {"r0.6.1", "v1.1", "v1.19"} <= set(reply["versions"])
    assert all(isinstance(value, bool) for value in reply["unstable_features"].values())


async def test_capabilities(server: Server) -> None:
    session = await server.register("alice")
    capabilities = (await session.get("/capabilities")).json()["capabilities"]
    assert capabilities["m.room_versions"]["default"] == "12"
    assert capabilities["m.room_versions"]["available"] == dict.fromkeys(map(str, range(1, 13)), "stable")
    assert capabilities["m.change_password"] == {"enabled": True}
    assert (await server.get("/capabilities")).status_code == 401


async def test_the_historical_path_is_served_too(server: Server) -> None:
    session = await server.register("alice")
    for path in ("account/whoami", "capabilities", f"profile/{session.user_id}"):
        assert (await session.get(f"/_matrix/client/r0/{path}")).status_code == 200


async def test_well_known(make_server: Make) -> None:
    bare = make_server()
    for name in ("client", "server", "support"):
        missing = await bare.get(f"/.well-known/matrix/{name}")
        assert (missing.status_code, missing.json()["errcode"]) == (404, "M_NOT_FOUND")
    server = make_server(
        public_baseurl="https://matrix.test.example",
        serve_server_wellknown=True,
        extra_well_known_client_content={"org.example": {"a": 1}},
        admin_contact="mailto:admin@test.example",
    )
    client = await server.get("/.well-known/matrix/client")
    assert client.json() == {"m.homeserver": {"base_url": "https://matrix.test.example/"}, "org.example": {"a": 1}}
    assert client.headers["access-control-allow-origin"] == "*"
    assert (await server.get("/.well-known/matrix/server")).json() == {"m.server": "test.example:443"}
    assert (await server.get("/.well-known/matrix/support")).json() == {
        "contacts": [{"role": "m.role.admin", "email_address": "admin@test.example"}]
    }


async def test_support_page_and_contacts(make_server: Make) -> None:
    contact = {"role": "m.role.security", "matrix_id": "@sec:test.example"}
    support = {"contacts": [contact], "support_page": "https://test.example/help"}
    server = make_server(tessera={"support": support})
    assert (await server.get("/.well-known/matrix/support")).json() == support


async def test_the_key_of_a_policy_server(make_server: Make, tmp_path: Path) -> None:
    assert (await make_server().get("/.well-known/matrix/policy_server")).status_code == 404
    key = SigningKey("any", b"\x05" * 32)
    path = tmp_path / "policy.key"
    path.write_text(f"ed25519 any {encode_base64(key.seed)}\n")
    server = make_server(tessera={"policy_server": {"signing_key_path": str(path)}})
    answer = await server.get("/.well-known/matrix/policy_server")
    assert answer.json() == {"public_keys": {"ed25519": key.public_key_base64}}
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_browsers_are_sent_to_the_web_client(make_server: Make) -> None:
    assert (await make_server().client.get("/")).status_code == 404
    server = make_server(web_client_location="https://chat.test.example/")
    reply = await server.client.get("/")
    assert (reply.status_code, reply.headers["location"]) == (302, "https://chat.test.example/")


async def test_turn_credentials_are_made_with_the_shared_secret(make_server: Make) -> None:
    server = make_server(turn_uris=["turn:turn.example"], turn_shared_secret="s3cret", turn_user_lifetime="1h")
    session = await server.register("alice")
    reply = (await session.get("/voip/turnServer")).json()
    expires = server.clock.now_ms() // 1000 + 3600
    assert reply["username"] == f"{expires}:@alice:test.example"
    expected = hmac.new(b"s3cret", reply["username"].encode(), hashlib.sha1).digest()
    assert reply["password"] == base64.b64encode(expected).decode()
    assert (reply["ttl"], reply["uris"]) == (3600, ["turn:turn.example"])


async def test_fixed_turn_credentials_and_none(make_server: Make) -> None:
    session = await make_server().register("alice")
    none = await session.get("/voip/turnServer")
    assert (none.status_code, none.json()["errcode"]) == (404, "M_NOT_FOUND")
    fixed = make_server(turn_uris=["turn:t"], turn_username="user", turn_password="pass", allow_guest_access=True)
    reply = (await (await fixed.login("alice")).get("/voip/turnServer")).json()
    assert (reply["username"], reply["password"]) == ("user", "pass")
    uris_alone = make_server(turn_uris=["turn:t"])
    assert (await (await uris_alone.login("alice")).get("/voip/turnServer")).status_code == 404


async def test_guests_get_turn_credentials_where_they_may(make_server: Make) -> None:
    turn = {"turn_uris": ["turn:t"], "turn_shared_secret": "s", "allow_guest_access": True}
    for allowed, status in ((True, 200), (False, 403)):
        server = make_server(turn_allow_guests=allowed, **turn)
        guest = server.session((await server.post("/register", {}, params={"kind": "guest"})).json())
        assert (await guest.get("/voip/turnServer")).status_code == status


async def test_presence_is_set_and_seen_by_those_who_share_a_room(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    path = f"/presence/{alice.user_id}/status"
    assert (await alice.get(path)).json()["errcode"] == "M_NOT_FOUND"
    assert (await alice.put(path, {"presence": "online", "status_msg": "here"})).json() == {}
    server.clock.shift(5)
    assert (await alice.get(path)).json() == {
        "presence": "online",
        "last_active_ago": 5000,
        "currently_active": True,
        "status_msg": "here",
    }
    assert (await bob.get(path)).json()["errcode"] == "M_FORBIDDEN"
    await server.join("!r:x", alice, bob)
    assert (await bob.get(path)).json()["presence"] == "online"
    assert (await bob.put(path, {"presence": "offline"})).status_code == 403
    assert (await alice.put(path, {})).json()["errcode"] == "M_MISSING_PARAM"
    assert (await alice.put(path, {"presence": "bored"})).json()["errcode"] == "M_INVALID_PARAM"
    assert (await alice.put(path, {"presence": "online", "status_msg": 5})).json()["errcode"] == "M_BAD_JSON"
    [change] = server.fanout.presence
    assert (change.user_id, change.presence, change.status_msg) == (alice.user_id, "online", "here")


async def test_presence_can_be_switched_off(make_server: Make) -> None:
    server = make_server(presence={"enabled": False})
    alice = await server.register("alice")
    path = f"/presence/{alice.user_id}/status"
    assert (await alice.put(path, {"presence": "online"})).json() == {}
    assert (await alice.get(path)).json() == {"presence": "offline"}
    assert server.fanout.presence == []


async def _search(session: Session, term: str, **fields: object) -> list[str]:
    reply = (await session.post("/user_directory/search", {"search_term": term, **fields})).json()
    return [user["user_id"] for user in reply["results"]]


async def test_the_directory_finds_whom_the_user_can_see(server: Server) -> None:
    alice, bob, carol, dave = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    await bob.put(f"/profile/{bob.user_id}/displayname", {"displayname": "Robert 100% Müller"})
    assert await _search(alice, "bob") == []
    await server.join("!shared:x", alice, bob)
    await server.join("!public:x", carol)
    await server.join("!private:x", dave)
    summary = RoomSummary(
        RoomId("!public:x"), 1, 1, None, None, None, None, None, "public", False, False, None, "12", 1
    )
    async with server.accounts.reading() as tx:
        await directory.set_summaries(tx, [summary])
    for term in ("bob", "BOB", "robert", "müller rob", "100%", "@bob:test.example"):
        assert await _search(alice, term) == [bob.user_id], term
    assert await _search(alice, "carol") == [carol.user_id]
    assert await _search(alice, "dave") == []
    assert await _search(alice, "alice") == []
    assert await _search(alice, "_") == []
    assert await _search(alice, "  ") == []
    reply = await alice.post("/user_directory/search", {"search_term": "robert"})
    assert reply.json() == {
        "limited": False,
        "results": [{"user_id": bob.user_id, "display_name": "Robert 100% Müller"}],
    }


async def test_the_directory_s_limit_and_bad_requests(make_server: Make) -> None:
    server = make_server(user_directory={"search_all_users": True})
    alice = await server.register("alice")
    for number in range(3):
        await server.register(f"user{number}")
    reply = (await alice.post("/user_directory/search", {"search_term": "user", "limit": 2})).json()
    assert reply["limited"] is True
    assert [user["user_id"] for user in reply["results"]] == [UserId(f"@user{n}:test.example") for n in range(2)]
    for body, errcode in (
        ({}, "M_MISSING_PARAM"),
        ({"search_term": 5}, "M_BAD_JSON"),
        ({"search_term": "x", "limit": "many"}, "M_BAD_JSON"),
        ({"search_term": "x", "limit": 0}, "M_INVALID_PARAM"),
    ):
        refused = await alice.post("/user_directory/search", body)
        assert (refused.status_code, refused.json()["errcode"]) == (400, errcode)


async def test_the_search_is_one_query(server: Server) -> None:
    alice = await server.register("alice")
    await alice.get("/account/whoami")
    async with server.accounts.counting() as count:
        await _search(alice, "bob")
    assert count.statements == 1

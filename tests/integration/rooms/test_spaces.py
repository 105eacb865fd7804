"""Spaces and summaries of rooms over HTTP. Spec: C-S API §Spaces, §Room Summaries."""

from itertools import count
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, SERVER

from matrixcore.identifiers import EventId, RoomId
from services.gateway.space_hierarchy import Walk, load_page
from tessera.storage import user_rooms, users
from tessera.storage.database import Database
from tessera.storage.user_rooms import MembershipChange

_numbers = count()


@pytest.fixture
async def people(accounts: Database, writer: object, http: httpx.AsyncClient) -> list[Client]:
    """Alice, Bob and Carol."""
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB, CAROL):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
    return [Client(http, user_id, "D") for user_id in (ALICE, BOB, CAROL)]


async def make(client: Client, name: str, *, space: bool = False, **body: Any) -> str:
    """A public room; `initial_state` and others as given."""
    # The clock stands still, and rooms of version 12 are named by their create events.
    content = {"org.example.number": next(_numbers), **({"type": "m.space"} if space else {})}
    body = {"preset": "public_chat", "name": name, "creation_content": content, **body}
    room_id: str = (await client.post("/createRoom", body))["room_id"]
    return room_id


async def put_in(client: Client, space: str, child: str, **content: Any) -> None:
    await client.put(f"/rooms/{space}/state/m.space.child/{child}", {"via": [SERVER], **content})


async def hierarchy(client: Client, room_id: str, **query: Any) -> Any:
    status, reply = await client.call("GET", f"/rooms/{room_id}/hierarchy", version="v1", **query)
    assert status == 200, reply
    return reply


def names(reply: Any) -> list[str]:
    return [room["name"] for room in reply["rooms"]]


async def tree(alice: Client) -> dict[str, str]:
    """root: (a: (a1, a2: (root, deep)), b, c); ordered by `order`, c suggested."""
    rooms = {name: await make(alice, name, space=name in ("root", "a", "a2")) for name in ("root", "a", "a1", "a2")}
    rooms |= {name: await make(alice, name) for name in ("b", "c", "deep")}
    await put_in(alice, rooms["root"], rooms["c"], suggested=True)
    await put_in(alice, rooms["root"], rooms["b"], order="b")
    await put_in(alice, rooms["root"], rooms["a"], order="a", suggested=True)
    await put_in(alice, rooms["a"], rooms["a1"], order="1")
    await put_in(alice, rooms["a"], rooms["a2"], order="2")
    await put_in(alice, rooms["a2"], rooms["root"])
    await put_in(alice, rooms["a2"], rooms["deep"])
    return rooms


async def test_a_tree_depth_first_and_in_order(people: list[Client]) -> None:
    alice = people[0]
    rooms = await tree(alice)
    reply = await hierarchy(alice, rooms["root"])
    assert names(reply) == ["root", "a", "a1", "a2", "deep", "b", "c"]
    assert "next_batch" not in reply
    root = reply["rooms"][0]
    assert [child["state_key"] for child in root["children_state"]] == [rooms["a"], rooms["b"], rooms["c"]]
    child = root["children_state"][0]
    assert set(child) == {"type", "state_key", "content", "sender", "origin_server_ts"}
    assert (root["room_type"], root["room_version"], root["num_joined_members"]) == ("m.space", "12", 1)
    assert reply["rooms"][2]["children_state"] == []
    assert names(await hierarchy(alice, rooms["root"], max_depth=1)) == ["root", "a", "b", "c"]
    assert names(await hierarchy(alice, rooms["root"], max_depth=0)) == ["root"]
    suggested = await hierarchy(alice, rooms["root"], suggested_only="true")
    assert names(suggested) == ["root", "a", "c"]
    assert suggested["rooms"][1]["children_state"] == []
    await alice.put(f"/rooms/{rooms['root']}/state/m.space.child/{rooms['a']}", {})
    assert names(await hierarchy(alice, rooms["root"])) == ["root", "b", "c"]


@pytest.mark.parametrize("limit", [1, 2, 3, 6])
async def test_pages_go_on_where_the_last_one_ended(people: list[Client], limit: int) -> None:
    alice = people[0]
    rooms = await tree(alice)
    collected: list[str] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        reply = await hierarchy(alice, rooms["root"], **query)
        assert len(reply["rooms"]) <= limit
        collected += names(reply)
        if "next_batch" not in reply:
            break
        query["from"] = reply["next_batch"]
    # `root` again in `a2`: a circle shows only once in a page, and is not entered again.
    assert [name for name in collected if name != "root"] == ["a", "a1", "a2", "deep", "b", "c"]
    path = f"/rooms/{rooms['root']}/hierarchy"
    wrong = {"from": query["from"], "suggested_only": "true", "version": "v1"}
    assert await alice.refused("GET", path, **wrong) == (400, "M_INVALID_PARAM")
    assert await alice.refused("GET", path, **{**wrong, "suggested_only": "false", "max_depth": 2}) == (
        400,
        "M_INVALID_PARAM",
    )
    for token in ("nonsense", "WzEsMl0", "ü"):
        assert await alice.refused("GET", path, **{"from": token, "version": "v1"}) == (400, "M_INVALID_PARAM")


async def test_rooms_that_the_user_may_not_see_are_left_out(people: list[Client]) -> None:
    alice, bob, carol = people
    space = await make(alice, "space", space=True)
    rules = {
        "invited": "invite",
        "knock": "knock",
        "closed": "invite",
        "members": "restricted",
        "strangers": "restricted",
        "readable": "invite",
        "banned": "public",
    }
    other = await make(alice, "other")
    rooms: dict[str, str] = {}
    for name, rule in rules.items():
        content: dict[str, Any] = {"join_rule": rule}
        if rule == "restricted":
            allowed = space if name == "members" else other
            content["allow"] = [{"type": "m.room_membership", "room_id": allowed}]
        state = [{"type": "m.room.join_rules", "content": content}]
        if name == "readable":
            readable = {"history_visibility": "world_readable"}
            state.append({"type": "m.room.history_visibility", "content": readable})
        rooms[name] = await make(alice, name, initial_state=state)
        await put_in(alice, space, rooms[name], order=name)
    await put_in(alice, space, f"!unknown:{SERVER}")
    await bob.post(f"/join/{space}")
    await alice.post(f"/rooms/{rooms['invited']}/invite", {"user_id": BOB})
    await alice.post(f"/rooms/{rooms['banned']}/ban", {"user_id": BOB})
    reply = await hierarchy(bob, space)
    assert names(reply) == ["space", "invited", "knock", "members", "readable"]
    assert reply["rooms"][3]["allowed_room_ids"] == [space]
    assert sorted(names(await hierarchy(alice, space))) == sorted(["space", *rules])
    await alice.put(f"/rooms/{space}/state/m.room.join_rules", {"join_rule": "invite"})
    path = f"/rooms/{space}/hierarchy"
    assert await carol.refused("GET", path, version="v1") == (403, "M_FORBIDDEN")
    assert await carol.refused("GET", f"/rooms/!no:{SERVER}/hierarchy", version="v1") == (403, "M_FORBIDDEN")


async def test_queries_do_not_grow_with_the_rooms(people: list[Client], gateway: SimpleNamespace) -> None:
    alice = people[0]
    counts = []
    for size in (3, 30):
        root = await make(alice, "root", space=True)
        for number in range(size):
            inner = await make(alice, f"inner{number}", space=True)
            await put_in(alice, root, inner)
            await put_in(alice, inner, await make(alice, f"leaf{number}"))
        async with gateway.accounts.counting() as counted:
            page = await load_page(gateway.shards, gateway.accounts, ALICE, RoomId(root), Walk(False, 15), limit=500)
        assert len(page["rooms"]) == 1 + 2 * size
        counts.append(counted.statements)
    assert counts[0] == counts[1] == 8  # outlines and memberships of three levels, children of two


async def summary(client: Client, room: str, path: str = "/_matrix/client/v1/room_summary/") -> Any:
    reply = await client._http.get(path + room, headers=client._headers)
    return reply.status_code, reply.json()


async def test_summaries(people: list[Client], http: httpx.AsyncClient, accounts: Database) -> None:
    alice, bob, carol = people
    topic = {"topic": "old", "m.topic": {"m.text": [{"mimetype": "text/html", "body": "<b>"}, {"body": "new"}]}}
    state = [
        {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
        {"type": "m.room.topic", "content": topic},
    ]
    public = await make(alice, "public", room_alias_name="tea", initial_state=state)
    told = {
        "room_id": public,
        "name": "public",
        "topic": "new",
        "canonical_alias": f"#tea:{SERVER}",
        "num_joined_members": 1,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        "room_version": "12",
        "encryption": "m.megolm.v1.aes-sha2",
    }
    assert await summary(alice, public) == (200, {**told, "membership": "join"})
    assert await summary(bob, f"%23tea:{SERVER}") == (200, {**told, "membership": "leave"})
    for path in ("/_matrix/client/v1/room_summary/%s", "/_matrix/client/unstable/im.nheko.summary/rooms/%s/summary"):
        reply = await http.get(path % public)
        assert (reply.status_code, reply.json()) == (200, told)
    private = await make(alice, "private", preset="private_chat")
    assert await summary(bob, private) == (404, {"errcode": "M_NOT_FOUND", "error": "Room not found"})
    assert (await http.get(f"/_matrix/client/v1/room_summary/{private}")).status_code == 404
    await alice.post(f"/rooms/{private}/invite", {"user_id": BOB})
    assert (await summary(bob, private))[1]["membership"] == "invite"
    assert (await summary(carol, f"!no:{SERVER}"))[0] == 404
    stripped = b'[{"type":"m.room.name","state_key":"","content":{"name":"Far"},"sender":"@a:far.org"}]'
    invite = MembershipChange(CAROL, RoomId("!far:far.org"), "invite", EventId("$i"), ALICE, 0, 1, 1, stripped)
    async with accounts.transaction() as tx:
        await user_rooms.apply_changes(tx, [invite])
    status, reply = await summary(carol, "!far:far.org")
    assert (status, reply["name"], reply["membership"]) == (200, "Far", "invite")

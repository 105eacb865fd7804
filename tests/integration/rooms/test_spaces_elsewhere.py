"""Spaces and summaries of rooms that only other servers know. Spec: C-S API §Spaces, §Room Summaries; S-S §Spaces."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, SERVER

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from services.gateway import spaces_elsewhere
from services.gateway.rooms_elsewhere import RoomsElsewhere
from services.gateway.spaces_elsewhere import SpacesElsewhere, check_answer
from tessera.clock import FakeClock
from tessera.federation.errors import PeerRefused, PeerUnreachable
from tessera.storage import user_rooms, users
from tessera.storage.database import Database
from tessera.storage.user_rooms import MembershipChange

FAR, DEAD = ServerName("far.org"), ServerName("dead.org")
_numbers = count()


@dataclass
class FarServers:
    """Servers with rooms of their own, in place of the client.

    Attributes:
        rooms: server -> room ID -> its answer to /hierarchy.
        asked: (server, room ID, suggested_only) in order.
    """

    rooms: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {FAR: {}})
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    async def get(self, server: str, path: str, query: Mapping[str, Any], **_more: Any) -> dict[str, Any]:
        if "/query/directory" in path:
            return {"room_id": self.aliases[query["room_alias"]], "servers": [server]}
        room_id = unquote(path.rpartition("/")[2])
        self.asked.append((server, room_id, query["suggested_only"]))
        if server not in self.rooms:
            raise PeerUnreachable(server)
        if room_id not in self.rooms[server]:
            raise PeerRefused(404, "M_NOT_FOUND", "no such room")
        return self.rooms[server][room_id]

    def add(
        self,
        name: str,
        *children: str,
        told: tuple[str, ...] = (),
        closed: tuple[str, ...] = (),
        server: str = FAR,
        via: tuple[str, ...] = (FAR,),
        suggested: tuple[str, ...] = (),
        **line: Any,
    ) -> str:
        """A room with children, some of which the answer tells of."""
        room_id = f"!{name}:{server}"
        room = {
            **_line(name, server, **line),
            **({"room_type": "m.space"} if children else {}),
            "children_state": [_child(child, number, via, child in suggested) for number, child in enumerate(children)],
        }
        rooms = self.rooms.setdefault(server, {})
        below = [{**rooms[child]["room"], "children_state": []} for child in told]
        rooms[room_id] = {"room": room, "children": below, "inaccessible_children": list(closed)}
        return room_id


def _line(name: str, server: str, **more: Any) -> dict[str, Any]:
    return {
        "room_id": f"!{name}:{server}",
        "name": name,
        "num_joined_members": 3,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        **more,
    }


def _child(room_id: str, number: int, via: tuple[str, ...], suggested: bool) -> dict[str, Any]:
    content = {"via": list(via), "order": f"{number:04}", **({"suggested": True} if suggested else {})}
    sender = f"@a:{FAR}"
    return {
        "type": "m.space.child",
        "state_key": room_id,
        "content": content,
        "sender": sender,
        "origin_server_ts": number,
    }


@pytest.fixture
def far(gateway: SimpleNamespace, clock: FakeClock) -> FarServers:
    """Other servers, which the gateway can ask."""
    servers = FarServers()
    shaker: Any = SimpleNamespace(server_name=SERVER, client=servers)
    joiner: Any = None
    gateway.elsewhere = RoomsElsewhere(gateway.rooms, shaker, joiner)
    gateway.spaces = SpacesElsewhere(servers, SERVER, clock)
    return servers


@pytest.fixture
async def people(accounts: Database, writer: object, http: httpx.AsyncClient) -> list[Client]:
    """Alice and Bob."""
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
    return [Client(http, user_id, "D") for user_id in (ALICE, BOB)]


async def make_space(alice: Client, *children: str, via: tuple[str, ...] = (FAR,), **content: Any) -> str:
    """A public space of this server's with rooms of others in it."""
    create = {"type": "m.space", "org.example.number": next(_numbers)}
    made = await alice.post("/createRoom", {"preset": "public_chat", "name": "here", "creation_content": create})
    for number, child in enumerate(children):
        told = {"via": list(via), "order": f"{number:04}", **content}
        await alice.put(f"/rooms/{made['room_id']}/state/m.space.child/{child}", told)
    room_id: str = made["room_id"]
    return room_id


async def hierarchy(client: Client, room_id: str, **query: Any) -> Any:
    status, reply = await client.call("GET", f"/rooms/{room_id}/hierarchy", version="v1", **query)
    assert status == 200, reply
    return reply


def names(reply: Any) -> list[str]:
    return [room["name"] for room in reply["rooms"]]


async def test_rooms_of_other_servers_stand_in_a_local_space(people: list[Client], far: FarServers) -> None:
    alice = people[0]
    tea = far.add("tea", topic="leaves", avatar_url="mxc://far.org/a", room_version="11")
    inner = far.add("inner", tea, told=(tea,), join_rule="knock")
    closed = far.add("closed", join_rule="invite")
    space = await make_space(alice, inner, closed, f"!gone:{FAR}")
    reply = await hierarchy(alice, space)
    assert names(reply) == ["here", "inner", "tea"]
    told = {**_line("tea", FAR, topic="leaves", avatar_url="mxc://far.org/a", room_version="11"), "children_state": []}
    assert reply["rooms"][2] == told
    assert [child["state_key"] for child in reply["rooms"][1]["children_state"]] == [tea]
    # The space among them told of its leaf, which nobody was asked for apart.
    assert sorted(room for _, room, _ in far.asked) == sorted([inner, closed, f"!gone:{FAR}"])


async def test_answers_are_remembered_for_a_while(people: list[Client], far: FarServers, clock: FakeClock) -> None:
    alice, bob = people
    tea = far.add("tea")
    space = await make_space(alice, tea, f"!gone:{FAR}")
    for client in (alice, bob, alice):
        assert names(await hierarchy(client, space)) == ["here", "tea"]
    assert len(far.asked) == 2
    await clock.advance(spaces_elsewhere.SILENT_SECONDS + 1)
    far.rooms[FAR].pop(tea)
    assert names(await hierarchy(alice, space)) == ["here", "tea"]
    assert far.asked[2:] == [(FAR, f"!gone:{FAR}", "false")]
    await clock.advance(spaces_elsewhere.REMEMBER_SECONDS)
    assert names(await hierarchy(alice, space)) == ["here"]


async def test_the_next_server_is_asked_if_one_is_dead(people: list[Client], far: FarServers) -> None:
    alice = people[0]
    tea = far.add("tea")
    space = await make_space(alice, tea, via=(SERVER, DEAD, FAR))
    assert names(await hierarchy(alice, space)) == ["here", "tea"]
    assert [server for server, _, _ in far.asked] == [DEAD, FAR]
    other = await make_space(alice, far.add("cake"), via=(SERVER,))
    assert names(await hierarchy(alice, other)) == ["here"]
    assert len(far.asked) == 2


async def test_who_may_see_is_judged_by_what_the_server_says(
    people: list[Client], far: FarServers, accounts: Database
) -> None:
    alice, bob = people
    club = await make_space(alice)
    rooms = [
        far.add("readable", join_rule="invite", world_readable=True),
        far.add("club", join_rule="restricted", allowed_room_ids=[club]),
        far.add("strangers", join_rule="restricted", allowed_room_ids=[f"!x:{FAR}"]),
        far.add("invited", join_rule="invite"),
        far.add("banned"),
    ]
    space = await make_space(alice, *rooms)
    for number, (name, membership) in enumerate((("invited", "invite"), ("banned", "ban"))):
        far_room = RoomId(f"!{name}:{FAR}")
        change = MembershipChange(
            BOB, far_room, membership, EventId(f"${name}"), UserId(f"@a:{FAR}"), 0, 1, number, b"[]"
        )
        async with accounts.transaction() as tx:
            await user_rooms.apply_changes(tx, [change])
    await bob.post(f"/join/{space}")
    assert names(await hierarchy(bob, space)) == ["here", "readable", "invited"]
    await bob.post(f"/join/{club}")
    reply = await hierarchy(bob, space)
    assert names(reply) == ["here", "readable", "club", "invited"]
    assert reply["rooms"][2]["allowed_room_ids"] == [club]
    assert names(await hierarchy(alice, space)) == ["here", "readable", "club", "banned"]


async def test_a_server_speaks_of_its_own_space_only(people: list[Client], far: FarServers) -> None:
    """An answer names rooms that are not in the space, and one that is here: neither is believed."""
    alice = people[0]
    mine = await make_space(alice)
    evil = far.add("evil", mine)
    victim = {**_line("victim", "good.org"), "name": "defaced"}
    far.rooms[FAR][evil]["children"] = [victim, {**victim, "room_id": mine}]
    far.add("victim", server="good.org")
    space = await make_space(alice, evil)
    await alice.put(f"/rooms/{space}/state/m.space.child/!victim:good.org", {"via": ["good.org"], "order": "~"})
    assert names(await hierarchy(alice, space)) == ["here", "evil", "here", "victim"]


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_through_remote_spaces(people: list[Client], far: FarServers, limit: int) -> None:
    alice = people[0]
    leaves = [far.add(f"leaf{number}") for number in range(4)]
    deep = far.add("deep", leaves[0], leaves[1], told=(leaves[0],))
    inner = far.add("inner", leaves[2], deep, f"!gone:{FAR}", leaves[3], told=(deep,), closed=(f"!gone:{FAR}",))
    space = await make_space(alice, inner, far.add("last"))
    collected: list[str] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        reply = await hierarchy(alice, space, **query)
        collected += names(reply)
        if "next_batch" not in reply:
            break
        query["from"] = reply["next_batch"]
    assert collected == ["here", "inner", "leaf2", "deep", "leaf0", "leaf1", "leaf3", "last"]
    assert f"!gone:{FAR}" not in [room for _, room, _ in far.asked]


async def test_a_page_ends_where_enough_was_asked(
    people: list[Client], far: FarServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces_elsewhere, "MAX_REQUESTS", 3)
    alice = people[0]
    space = await make_space(alice, *(far.add(f"leaf{number}") for number in range(8)))
    pages = []
    query: dict[str, Any] = {}
    while True:
        reply = await hierarchy(alice, space, **query)
        pages.append(names(reply))
        if "next_batch" not in reply:
            break
        query["from"] = reply["next_batch"]
    leaves = [f"leaf{number}" for number in range(8)]
    assert pages == [["here", *leaves[:3]], leaves[3:6], leaves[6:]]


async def test_a_space_that_only_others_know(people: list[Client], far: FarServers) -> None:
    alice = people[0]
    tea, cake = far.add("tea"), far.add("cake")
    root = far.add("root", tea, cake, told=(tea, cake), suggested=(cake,))
    assert names(await hierarchy(alice, root)) == ["root", "tea", "cake"]
    suggested = await hierarchy(alice, root, suggested_only="true")
    assert names(suggested) == ["root", "cake"]
    assert [asked[2] for asked in far.asked] == ["false", "true"]
    path = f"/rooms/!no:{FAR}/hierarchy"
    assert await alice.refused("GET", path, version="v1") == (403, "M_FORBIDDEN")
    private = far.add("private", join_rule="invite")
    assert await alice.refused("GET", f"/rooms/{private}/hierarchy", version="v1") == (403, "M_FORBIDDEN")


async def test_summaries_of_rooms_elsewhere(people: list[Client], far: FarServers, http: httpx.AsyncClient) -> None:
    alice = people[0]
    tea = far.add("tea", encryption="m.megolm.v1.aes-sha2")
    path = "/_matrix/client/v1/room_summary/"
    headers = alice._headers
    assert (await http.get(path + tea)).status_code == 404  # nobody is asked for strangers
    assert far.asked == []
    reply = await http.get(path + tea, headers=headers)
    assert (reply.status_code, reply.json()) == (
        200,
        {**_line("tea", FAR, encryption="m.megolm.v1.aes-sha2"), "membership": "leave"},
    )
    nameless = far.add("nameless")
    far.rooms["other.org"] = {"!12:x.org": {"room": {**far.rooms[FAR][nameless]["room"], "room_id": "!12:x.org"}}}
    assert (await http.get(path + "!12:x.org", headers=headers)).status_code == 404
    assert (await http.get(path + "!12:x.org?via=other.org", headers=headers)).json()["name"] == "nameless"
    far.aliases["#tea:far.org"] = tea
    assert (await http.get(path + "%23tea:far.org", headers=headers)).json()["room_id"] == tea
    private = far.add("private", join_rule="invite")
    assert (await http.get(path + private, headers=headers)).status_code == 404


async def test_of_a_room_that_was_left_the_others_know_better(people: list[Client], far: FarServers) -> None:
    alice = people[0]
    left = await make_space(alice)
    await alice.post(f"/rooms/{left}/leave")
    far.rooms[FAR][left] = {"room": _line("renamed", FAR) | {"room_id": left}, "children": []}
    space = await make_space(alice, left)
    assert names(await hierarchy(alice, space)) == ["here", "renamed"]
    other = await make_space(alice, left, via=(DEAD,))
    assert names(await hierarchy(alice, other)) == ["here", "here"]  # what was known when it was left


def test_answers_that_are_no_answers() -> None:
    room_id = RoomId("!r:far.org")
    assert check_answer(room_id, {}) is None
    assert check_answer(room_id, {"room": {"room_id": "!other:far.org"}}) is None
    child = _child("!c:far.org", 1, (FAR,), False)
    wrong = [
        7,
        {**child, "type": "m.room.name"},
        {**child, "content": {"via": "far.org"}},
        {**child, "content": {"via": [FAR], "number": 2**70}},
        {**child, "origin_server_ts": "1"},
        {**child, "state_key": "c"},
    ]
    line = {"room_id": room_id, "name": 7, "num_joined_members": -1, "allowed_room_ids": ["x", "!a:far.org"]}
    answer = check_answer(room_id, {"room": {**line, "children_state": [*wrong, child]}, "children": "none"})
    assert answer is not None
    assert [one.room_id for one in answer.room.children] == ["!c:far.org"]
    assert answer.room.line == {
        "room_id": room_id,
        "num_joined_members": 0,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        "allowed_room_ids": ["!a:far.org"],
    }

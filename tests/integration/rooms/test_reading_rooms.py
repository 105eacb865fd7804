"""Reading rooms as members, former members and strangers. Spec: C-S API §Getting events for a room."""

from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BEGINNING_MS, BOB, CAROL, ROOM, SeededRoom

from matrixcore.identifiers import UserId
from tessera.memberships import project_memberships
from tessera.storage import account_data, user_rooms, users
from tessera.storage.database import Database
from tessera.storage.user_rooms import MembershipChange
from tessera.sync_token import Point, SyncToken, encode_token


@pytest.fixture
def alice(http: httpx.AsyncClient) -> Client:
    return Client(http, ALICE, "A")


@pytest.fixture
def bob(http: httpx.AsyncClient) -> Client:
    return Client(http, BOB, "B")


@pytest.fixture
def carol(http: httpx.AsyncClient) -> Client:
    return Client(http, CAROL, "C")


def bodies(events: list[dict[str, Any]]) -> list[str]:
    return [event["content"].get("body", event["type"]) for event in events]


async def say(room: SeededRoom, user_id: UserId, *texts: str) -> None:
    for text in texts:
        await room.message(user_id, text)


async def test_pages_backwards_and_forwards_hold_every_event_once(alice: Client, room: SeededRoom) -> None:
    await say(room, ALICE, *"abcdefg")
    everything = ["m.room.create", "m.room.member", *"abcdefg"]
    for direction in ("b", "f"):
        seen: list[str] = []
        query: dict[str, Any] = {"dir": direction, "limit": 2}
        for _ in range(10):
            page = await alice.get(f"/rooms/{ROOM}/messages", **query)
            seen += bodies(page["chunk"])
            if "end" not in page or not page["chunk"]:
                break
            query["from"] = page["end"]
        assert seen == (everything if direction == "f" else everything[::-1])


async def test_from_and_to_bound_a_page_and_sync_tokens_count_as_their_component(
    alice: Client, room: SeededRoom, gateway: SimpleNamespace
) -> None:
    await say(room, ALICE, "a", "b")
    token = encode_token(SyncToken({gateway.shards.partition_of(ROOM): Point(1, room.position)}))
    await say(room, ALICE, "c", "d")
    assert bodies((await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=2, **{"from": token}))["chunk"]) == [
        "b",
        "a",
    ]
    assert bodies((await alice.get(f"/rooms/{ROOM}/messages", dir="b", to=token))["chunk"]) == ["d", "c"]
    assert bodies((await alice.get(f"/rooms/{ROOM}/messages", dir="f", **{"from": token}))["chunk"]) == ["c", "d"]
    refusal = await alice.refused("GET", f"/rooms/{ROOM}/messages", dir="b", **{"from": "nonsense"})
    assert refusal == (400, "M_INVALID_PARAM")


async def test_who_left_sees_the_room_as_of_the_leave(
    alice: Client, bob: Client, room: SeededRoom, accounts: Database
) -> None:
    await room.member(BOB, "join")
    await room.add("m.room.name", ALICE, {"name": "Before"}, state_key="")
    await say(room, ALICE, "heard")
    left = await room.member(BOB, "leave")
    await room.add("m.room.name", ALICE, {"name": "After"}, state_key="")
    await room.member(CAROL, "join")
    await say(room, ALICE, "unheard")
    page = await bob.get(f"/rooms/{ROOM}/messages", dir="b", limit=2)
    assert bodies(page["chunk"]) == ["m.room.member", "heard"]
    assert page["chunk"][0]["event_id"] == left.event_id
    assert await bob.get(f"/rooms/{ROOM}/state/m.room.name") == {"name": "Before"}
    state = {(event["type"], event["state_key"]): event["content"] for event in await bob.get(f"/rooms/{ROOM}/state")}
    assert state["m.room.member", BOB] == {"membership": "leave"}
    assert ("m.room.member", CAROL) not in state
    members = (await bob.get(f"/rooms/{ROOM}/members"))["chunk"]
    assert {event["state_key"] for event in members} == {ALICE, BOB}
    assert await bob.refused("GET", f"/rooms/{ROOM}/joined_members") == (403, "M_FORBIDDEN")
    assert await alice.get(f"/rooms/{ROOM}/state/m.room.name/") == {"name": "After"}


async def test_who_forgot_the_room_sees_nothing(
    bob: Client, room: SeededRoom, accounts: Database, gateway: SimpleNamespace
) -> None:
    await room.member(BOB, "join")
    left = await room.member(BOB, "leave")
    change = MembershipChange(BOB, ROOM, "leave", left.event_id, BOB, 0, 1, room.position)
    await project_memberships(accounts, gateway.fanout, [change])
    await bob.get(f"/rooms/{ROOM}/state")
    assert await bob.post(f"/rooms/{ROOM}/forget") == {}
    assert await bob.post(f"/rooms/{ROOM}/forget") == {}
    for path in ("state", "members", "messages?dir=b", "initialSync"):
        assert await bob.refused("GET", f"/rooms/{ROOM}/{path}") == (403, "M_FORBIDDEN")
    async with accounts.reading() as tx:
        row = await user_rooms.find_room(tx, BOB, ROOM)
    assert row is not None
    assert row.forgotten


async def test_strangers_see_world_readable_rooms_only(carol: Client, alice: Client, room: SeededRoom) -> None:
    await say(room, ALICE, "secret")
    assert await carol.refused("GET", f"/rooms/{ROOM}/messages", dir="b") == (403, "M_FORBIDDEN")
    assert await carol.refused("GET", "/rooms/!unknown:here.org/messages", dir="b") == (403, "M_FORBIDDEN")
    await room.add("m.room.history_visibility", ALICE, {"history_visibility": "world_readable"}, state_key="")
    await say(room, ALICE, "open")
    page = await carol.get(f"/rooms/{ROOM}/messages", dir="b")
    assert bodies(page["chunk"]) == ["open", "m.room.history_visibility"]
    preview = await carol.get(f"/rooms/{ROOM}/initialSync", limit=1)
    assert bodies(preview["messages"]["chunk"]) == ["open"]
    assert "membership" not in preview
    assert preview["visibility"] == "private"
    again = await carol.get("/events", room_id=ROOM, timeout=0, **{"from": preview["messages"]["start"]})
    assert bodies(again["chunk"]) == ["open"]
    assert (await carol.get("/events", room_id=ROOM, timeout=0, **{"from": again["end"]}))["chunk"] == []


@pytest.mark.parametrize(("setting", "seen"), [("shared", True), ("joined", False), ("invited", False)])
async def test_history_before_the_join(bob: Client, room: SeededRoom, setting: str, seen: bool) -> None:
    await room.add("m.room.history_visibility", ALICE, {"history_visibility": setting}, state_key="")
    early = await room.message(ALICE, "early")
    await room.member(BOB, "join")
    await say(room, ALICE, "late")
    page = bodies((await bob.get(f"/rooms/{ROOM}/messages", dir="b", limit=50))["chunk"])
    assert ("early" in page, "late" in page) == (seen, True)
    status, _ = await bob.call("GET", f"/rooms/{ROOM}/event/{early.event_id}")
    assert status == (200 if seen else 404)
    status, _ = await bob.call("GET", f"/rooms/{ROOM}/context/{early.event_id}")
    assert status == (200 if seen else 404)


async def test_filters_and_lazy_loaded_members(alice: Client, room: SeededRoom) -> None:
    await room.member(BOB, "join", displayname="Bob")
    await say(room, BOB, "from bob")
    await room.add("m.sticker", ALICE, {"url": "mxc://x/y"})
    await say(room, ALICE, "from alice")

    async def page(**wanted: Any) -> Any:
        return await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=50, filter=orjson.dumps(wanted).decode())

    assert bodies((await page(senders=[BOB]))["chunk"]) == ["from bob", "m.room.member"]
    assert bodies((await page(types=["m.st*"]))["chunk"]) == ["m.sticker"]
    assert bodies((await page(not_types=["m.room.*"]))["chunk"]) == ["m.sticker"]
    assert bodies((await page(contains_url=True))["chunk"]) == ["m.sticker"]
    assert (await page(rooms=["!other:here.org"]))["chunk"] == []
    lazy = await page(types=["m.room.message"], senders=[BOB], lazy_load_members=True)
    assert [(event["state_key"], event["content"]["displayname"]) for event in lazy["state"]] == [(BOB, "Bob")]
    refusal = await alice.refused("GET", f"/rooms/{ROOM}/messages", dir="b", filter="{")
    assert refusal == (400, "M_INVALID_PARAM")


async def test_messages_of_ignored_users_are_left_out_but_not_their_state(
    alice: Client, room: SeededRoom, accounts: Database
) -> None:
    await room.member(BOB, "join")
    await say(room, BOB, "noise")
    async with accounts.transaction() as tx:
        await account_data.set_content(tx, ALICE, "", "m.ignored_user_list", orjson.dumps({"ignored_users": {BOB: {}}}))
    page = await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=50)
    assert bodies(page["chunk"]) == ["m.room.member", "m.room.member", "m.room.create"]


async def test_what_erased_users_said_is_kept_by_who_heard_it(
    alice: Client, bob: Client, room: SeededRoom, accounts: Database
) -> None:
    await room.member(CAROL, "join")
    old = await room.message(CAROL, "old words")
    edit = {"rel_type": "m.replace", "event_id": old.event_id}
    new_content = {"msgtype": "m.text", "body": "new"}
    await room.message(CAROL, "* new", **{"m.relates_to": edit, "m.new_content": new_content})
    await room.member(BOB, "join")
    async with accounts.transaction() as tx:
        await users.add_user(tx, CAROL, password_hash=None, displayname=None, now_ms=1)
        await users.deactivate(tx, CAROL, erase=True)

    async def said(client: Client) -> list[dict[str, Any]]:
        chunk = (await client.get(f"/rooms/{ROOM}/messages", dir="b", limit=50))["chunk"]
        return [event["content"] for event in chunk if event["type"] == "m.room.message"]

    assert [content["body"] for content in await said(alice)] == ["* new", "old words"]
    assert await said(bob) == [{}, {}]
    served = await bob.get(f"/rooms/{ROOM}/event/{old.event_id}")
    assert "m.relations" not in served["unsigned"]
    assert "m.relations" in (await alice.get(f"/rooms/{ROOM}/event/{old.event_id}"))["unsigned"]


async def test_the_context_of_an_event(alice: Client, room: SeededRoom) -> None:
    await say(room, ALICE, "a", "b")
    middle = await room.message(ALICE, "c")
    await say(room, ALICE, "d", "e")
    context = await alice.get(f"/rooms/{ROOM}/context/{middle.event_id}", limit=2)
    assert bodies(context["events_before"]) == ["b"]
    assert context["event"]["event_id"] == middle.event_id
    assert bodies(context["events_after"]) == ["d"]
    older = await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=1, **{"from": context["start"]})
    newer = await alice.get(f"/rooms/{ROOM}/messages", dir="f", limit=1, **{"from": context["end"]})
    assert bodies(older["chunk"] + newer["chunk"]) == ["a", "e"]
    alone = await alice.get(f"/rooms/{ROOM}/context/{middle.event_id}", limit=0)
    assert (alone["events_before"], alone["events_after"]) == ([], [])
    assert await alice.refused("GET", f"/rooms/{ROOM}/context/$unknown") == (404, "M_NOT_FOUND")


async def test_members_by_membership_and_point(alice: Client, room: SeededRoom) -> None:
    await room.member(BOB, "join")
    point = f"t{room.position}"
    await room.member(BOB, "leave")
    await room.member(CAROL, "invite", sender=ALICE)

    async def members(**query: str) -> set[str]:
        return {event["state_key"] for event in (await alice.get(f"/rooms/{ROOM}/members", **query))["chunk"]}

    assert await members() == {ALICE, BOB, CAROL}
    assert await members(membership="join") == {ALICE}
    assert await members(not_membership="leave") == {ALICE, CAROL}
    assert await members(membership="leave", not_membership="invite") == {ALICE, BOB}
    assert await members(membership="join", at=point) == {ALICE, BOB}
    assert await alice.refused("GET", f"/rooms/{ROOM}/members", membership="guest") == (400, "M_INVALID_PARAM")
    joined = await alice.get(f"/rooms/{ROOM}/joined_members")
    assert joined == {"joined": {ALICE: {"display_name": "Alice"}}}


async def test_state_as_content_and_as_event(alice: Client, room: SeededRoom) -> None:
    await room.add("org.custom", ALICE, {"n": 1}, state_key="a/b c")
    assert await alice.get(f"/rooms/{ROOM}/state/org.custom/a%2Fb%20c") == {"n": 1}
    event = await alice.get(f"/rooms/{ROOM}/state/org.custom/a%2Fb%20c", format="event")
    assert (event["state_key"], event["room_id"], event["sender"]) == ("a/b c", ROOM, ALICE)
    assert await alice.refused("GET", f"/rooms/{ROOM}/state/org.custom") == (404, "M_NOT_FOUND")


async def test_relations_and_threads(alice: Client, room: SeededRoom, accounts: Database) -> None:
    root = await room.message(ALICE, "root")
    related = {"rel_type": "m.thread", "event_id": root.event_id}
    first = await room.message(ALICE, "first", **{"m.relates_to": related})
    second = await room.message(ALICE, "second", **{"m.relates_to": related})
    await room.add("m.reaction", ALICE, {"m.relates_to": {**related, "rel_type": "m.annotation", "key": "+"}})
    await accounts.execute(
        "INSERT INTO rooms.threads (room_id, thread_root, reply_count, latest_event_id, latest_anchor, notify_count,"
        " highlight_all_count) VALUES ($1, $2, 2, $3, $4, 0, 0)",
        ROOM,
        root.event_id,
        second.event_id,
        room.position - 1,
    )

    async def related_to(path: str = "", **query: Any) -> Any:
        status, reply = await alice.call("GET", f"/rooms/{ROOM}/relations/{root.event_id}{path}", version="v1", **query)
        assert status == 200, reply
        return reply

    assert bodies((await related_to())["chunk"]) == ["m.reaction", "second", "first"]
    assert bodies((await related_to("/m.thread", dir="f"))["chunk"]) == ["first", "second"]
    assert (await related_to("/m.thread/m.sticker"))["chunk"] == []
    page = await related_to("/m.thread", limit=1)
    rest = await related_to("/m.thread", limit=5, **{"from": page["next_batch"]})
    assert [event["event_id"] for event in rest["chunk"]] == [first.event_id]
    status, threads = await alice.call("GET", f"/rooms/{ROOM}/threads", version="v1", include="participated")
    assert status == 200
    (served,) = threads["chunk"]
    thread = served["unsigned"]["m.relations"]["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (2, second.event_id)


async def test_the_event_nearest_to_a_time(alice: Client, room: SeededRoom) -> None:
    await say(room, ALICE, "a", "b")

    async def nearest(ts: int, direction: str) -> tuple[int, Any]:
        status, reply = await alice.call("GET", f"/rooms/{ROOM}/timestamp_to_event", version="v1", ts=ts, dir=direction)
        return status, reply.get("origin_server_ts", reply.get("errcode"))

    assert await nearest(BEGINNING_MS + 2_500, "f") == (200, BEGINNING_MS + 3_000)
    assert await nearest(BEGINNING_MS + 2_500, "b") == (200, BEGINNING_MS + 2_000)
    assert await nearest(BEGINNING_MS + 99_000, "f") == (404, "M_NOT_FOUND")


async def test_events_that_are_hidden_are_passed_over(alice: Client, bob: Client, room: SeededRoom) -> None:
    """However many there are between the time and the first event that the user may see."""
    await room.add("m.room.history_visibility", ALICE, {"history_visibility": "joined"}, state_key="")
    await say(room, ALICE, *(f"hidden {number}" for number in range(25)))
    join = await room.member(BOB, "join")
    reply = (
        await bob.call("GET", f"/rooms/{ROOM}/timestamp_to_event", version="v1", ts=BEGINNING_MS + 4_500, dir="f")
    )[1]
    assert reply["event_id"] == join.event_id
    behind = await bob.call("GET", f"/rooms/{ROOM}/timestamp_to_event", version="v1", ts=BEGINNING_MS + 27_500, dir="b")
    assert behind[0] == 200  # the room's visibility before it was changed


async def test_a_page_takes_few_statements(alice: Client, room: SeededRoom, accounts: Database) -> None:
    await say(room, ALICE, *"abcdefghij")
    async with accounts.counting() as count:
        page = await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=10)
    assert len(page["chunk"]) == 10
    # Ignored users; the room with the memberships, the page, whether there are relations.
    assert count.statements == 2


async def test_relations_are_bundled_in_pages_of_one_look_and_of_several(alice: Client, room: SeededRoom) -> None:
    edited = await room.message(ALICE, "old", url="mxc://here.org/a")
    relation = {"rel_type": "m.replace", "event_id": edited.event_id}
    edit = await room.message(ALICE, "* new", **{"m.new_content": {"body": "new"}, "m.relates_to": relation})
    with_url = orjson.dumps({"contains_url": True}).decode()
    for query in ({"limit": 2}, {"limit": 1, "filter": with_url}):
        page = await alice.get(f"/rooms/{ROOM}/messages", dir="b", **query)
        shown = page["chunk"][-1]
        assert shown["content"]["body"] == "old"
        assert shown["unsigned"]["m.relations"]["m.replace"]["event_id"] == edit.event_id


async def test_reports(alice: Client, carol: Client, room: SeededRoom, accounts: Database) -> None:
    event = await room.message(ALICE, "bad")
    path = f"/rooms/{ROOM}/report"
    assert await alice.post(f"{path}/{event.event_id}", {"reason": "rude", "score": -100}) == {}
    assert await carol.post(path, {"reason": "all of it"}) == {}
    rows = await accounts.fetch("SELECT reporter, event_id, reported_user, reason FROM accounts.reports ORDER BY 1")
    assert [tuple(row) for row in rows] == [(ALICE, event.event_id, ALICE, "rude"), (CAROL, None, None, "all of it")]
    assert await carol.refused("POST", f"{path}/{event.event_id}", {}) == (404, "M_NOT_FOUND")
    assert await alice.refused("POST", f"{path}/$unknown", {}) == (404, "M_NOT_FOUND")
    assert await alice.refused("POST", path, {}) == (400, "M_MISSING_PARAM")
    assert await alice.refused("POST", f"/users/{BOB}/report", {"reason": "x"}) == (404, "M_NOT_FOUND")
    assert await alice.post("/users/@x:far.org/report", {"reason": ""}) == {}

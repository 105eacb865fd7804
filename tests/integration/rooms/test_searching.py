"""Searching what was said. Spec: C-S API §Server Side Search."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import RoomId, UserId
from services.projector.search import CONSUMER, SearchStep
from tessera.bus import LocalRecordBus
from tessera.clock import FakeClock
from tessera.record_consumer import RecordConsumer
from tessera.search_rebuilding import SearchRebuilder
from tessera.storage import account_data, erased_users, search, user_rooms
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.storage.user_rooms import MembershipChange

Index = Callable[[], Awaitable[None]]


@pytest.fixture
def alice(http: httpx.AsyncClient) -> Client:
    return Client(http, ALICE, "A")


@pytest.fixture
def bob(http: httpx.AsyncClient) -> Client:
    return Client(http, BOB, "B")


@pytest.fixture
def index(accounts: Database, shards: RoomShards, clock: FakeClock) -> Index:
    """Run the projector's step over all records."""
    consumer = RecordConsumer(CONSUMER, SearchStep(shards), LocalRecordBus(), accounts, shards, clock)
    return consumer.catch_up


async def listed(accounts: Database, user_id: UserId, room_id: RoomId = ROOM, membership: str = "join") -> None:
    """Let the account store know that the user is or was in the room."""
    change = MembershipChange(user_id, room_id, membership, "$any", user_id, 0, 1, 1)  # type: ignore[arg-type]
    async with accounts.transaction() as tx:
        await user_rooms.apply_changes(tx, [change])


async def find(client: Client, term: str, *, token: str | None = None, **criteria: Any) -> dict[str, Any]:
    body = {"search_categories": {"room_events": {"search_term": term, **criteria}}}
    query = {} if token is None else {"next_batch": token}
    status, reply = await client.call("POST", "/search", body, **query)
    assert status == 200, reply
    found: dict[str, Any] = reply["search_categories"]["room_events"]
    return found


def bodies(found: dict[str, Any]) -> list[str]:
    return [one["result"]["content"].get("body", one["result"]["type"]) for one in found["results"]]


async def test_words_phrases_and_beginnings_are_found(
    alice: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    for text in ("The quick brown fox", "A brown quick dog", "foxes and hens", "nothing"):
        await room.message(ALICE, text)
    await index()
    found = await find(alice, "QUICK brown", order_by="recent")
    assert bodies(found) == ["A brown quick dog", "The quick brown fox"]
    assert (found["count"], found["highlights"]) == (2, ["quick", "brown"])
    assert "next_batch" not in found
    assert found["results"][0]["rank"] > 0
    assert found["results"][0]["result"]["room_id"] == ROOM
    await room.message(ALICE, "ÄPFEL und Öl")
    await index()
    assert bodies(await find(alice, "äpfel ÖL")) == ["ÄPFEL und Öl"]
    assert bodies(await find(alice, '"quick brown"')) == ["The quick brown fox"]
    assert bodies(await find(alice, "fox", order_by="recent")) == ["foxes and hens", "The quick brown fox"]
    for term in ("wolf", "", "'", "\\", "!!! & | <-> :*", '"'):
        assert bodies(await find(alice, term)) == [], term


async def test_names_and_topics_are_found_by_their_keys(
    alice: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    await room.add("m.room.name", ALICE, {"name": "Harbour"}, state_key="")
    rich = {"m.text": [{"body": "<b>x</b>", "mimetype": "text/html"}, {"body": "Harbour masters"}]}
    await room.add("m.room.topic", ALICE, {"topic": "", "m.topic": rich}, state_key="")
    await room.message(ALICE, "in the harbour")
    await index()
    everything = ["in the harbour", "m.room.topic", "m.room.name"]
    assert bodies(await find(alice, "harbour", order_by="recent")) == everything
    assert bodies(await find(alice, "harbour", keys=["content.name"])) == ["m.room.name"]
    assert bodies(await find(alice, "masters", keys=["content.topic"])) == ["m.room.topic"]
    assert bodies(await find(alice, "harbour", filter={"types": ["m.room.message"]})) == ["in the harbour"]
    only_names = {"not_types": ["m.room.message", "m.room.topic"]}
    assert bodies(await find(alice, "harbour", filter=only_names)) == ["m.room.name"]


async def test_the_best_come_first_and_pages_hold_each_result_once(
    alice: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    await room.message(ALICE, "tea tea tea")
    for number in range(7):
        await room.message(ALICE, f"tea number {number}")
    await index()
    assert bodies(await find(alice, "tea"))[0] == "tea tea tea"
    for order in ("rank", "recent"):
        seen: list[str] = []
        token = None
        for _ in range(10):
            found = await find(alice, "tea", order_by=order, filter={"limit": 3}, token=token)
            assert found["count"] == 8
            seen += bodies(found)
            token = found.get("next_batch")
            if token is None:
                break
        assert len(seen) == len(set(seen)) == 8, order
    assert seen[:3] == ["tea number 6", "tea number 5", "tea number 4"]


async def test_filters_by_room_sender_url_and_relations(
    alice: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    other = RoomId(f"!other:{SERVER}")
    await listed(accounts, ALICE)
    await listed(accounts, ALICE, other)
    second = await SeededRoom(accounts, other).create()
    await room.member(BOB, "join")
    parent = await room.message(BOB, "word from bob")
    await room.message(ALICE, "word from alice", url="mxc://x/y")
    await second.message(ALICE, "word elsewhere")
    await room.message(ALICE, "thread", **{"m.relates_to": {"rel_type": "m.thread", "event_id": parent.event_id}})
    await index()
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"word from bob", "word from alice", "word elsewhere"}),
        ({"rooms": [other]}, {"word elsewhere"}),
        ({"not_rooms": [other]}, {"word from bob", "word from alice"}),
        ({"senders": [BOB]}, {"word from bob"}),
        ({"not_senders": [BOB]}, {"word from alice", "word elsewhere"}),
        ({"contains_url": True}, {"word from alice"}),
        ({"related_by_rel_types": ["m.thread"]}, {"word from bob"}),
        ({"related_by_senders": [BOB]}, set()),
        ({"rooms": ["!unknown:x"]}, set()),
    ]
    for wanted, expected in cases:
        assert set(bodies(await find(alice, "word", filter=wanted))) == expected, wanted


async def test_who_left_finds_what_came_before_and_strangers_nothing(
    alice: Client, bob: Client, http: httpx.AsyncClient, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    await room.member(BOB, "join")
    await room.message(ALICE, "secret early")
    await room.member(BOB, "leave")
    await listed(accounts, BOB, membership="leave")
    await room.message(ALICE, "secret late")
    await index()
    assert bodies(await find(bob, "secret")) == ["secret early"]
    with_context = await find(bob, "secret", event_context={})
    assert [e["type"] for e in with_context["results"][0]["context"]["events_after"]] == ["m.room.member"]
    await listed(accounts, CAROL)  # who never was in the room, whatever the account store thinks
    assert bodies(await find(Client(http, CAROL, "C"), "secret")) == []
    with_state = await find(bob, "secret", include_state=True)
    members = [e for e in with_state["state"][ROOM] if e["type"] == "m.room.member" and e["state_key"] == BOB]
    assert [event["content"]["membership"] for event in members] == ["leave"]


async def test_history_before_the_join_is_not_found_where_it_is_closed(
    bob: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await room.add("m.room.history_visibility", ALICE, {"history_visibility": "joined"}, state_key="")
    await room.message(ALICE, "secret early")
    await room.member(BOB, "join")
    await listed(accounts, BOB)
    await room.message(ALICE, "secret late")
    await index()
    assert bodies(await find(bob, "secret")) == ["secret late"]


async def test_redacted_erased_and_ignored_events_are_not_found(
    alice: Client, bob: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    await listed(accounts, BOB)
    event = await room.message(ALICE, "secret one")
    await room.member(BOB, "join")
    await room.message(ALICE, "secret two")
    await index()
    assert bodies(await find(bob, "secret", order_by="recent")) == ["secret two", "secret one"]
    async with accounts.transaction() as tx:
        await tx.execute("UPDATE accounts.users SET erased = true")
        await tx.execute(
            "INSERT INTO accounts.users (user_id, erased, deactivated, created_ts) VALUES ($1, true, true, 0)", ALICE
        )
        await erased_users.add_erasure(tx, ALICE)
    assert bodies(await find(bob, "secret")) == ["secret two"]  # he was there
    async with accounts.transaction() as tx:
        ignoring = orjson.dumps({"ignored_users": {ALICE: {}}})
        await account_data.set_content(tx, BOB, account_data.GLOBAL, "m.ignored_user_list", ignoring)
    assert bodies(await find(bob, "secret")) == []
    await accounts.execute("UPDATE rooms.events SET redacted_by = '$r' WHERE event_id = $1", event.event_id)
    assert bodies(await find(alice, "secret")) == ["secret two"]
    assert await accounts.fetchval("SELECT count(*) FROM rooms.search") == 2
    assert [
        step.changed async for step in SearchRebuilder(RoomShards({"main": accounts}, {0: "main"}, 1)).rebuild([0])
    ] == []


async def test_context_profiles_and_groups(alice: Client, room: SeededRoom, accounts: Database, index: Index) -> None:
    await listed(accounts, ALICE)
    await room.member(BOB, "join", displayname="Bob", avatar_url="mxc://b/b")
    for text in ("a", "b", "needle", "c", "d"):
        await room.message(BOB if text == "needle" else ALICE, text)
    await room.member(BOB, "join", displayname="Robert")
    await room.message(ALICE, "needle again")
    await index()
    found = await find(
        alice,
        "needle",
        order_by="recent",
        filter={"senders": [BOB]},
        event_context={"before_limit": 2, "after_limit": 1, "include_profile": True},
    )
    (result,) = found["results"]
    context = result["context"]
    assert [event["content"]["body"] for event in context["events_before"]] == ["b", "a"]
    assert [event["content"]["body"] for event in context["events_after"]] == ["c"]
    assert context["profile_info"] == {
        BOB: {"displayname": "Bob", "avatar_url": "mxc://b/b"},
        ALICE: {"displayname": "Alice"},
    }
    page = await alice.get(f"/rooms/{ROOM}/messages", dir="f", limit=1, **{"from": context["end"]})
    assert page["chunk"][0]["content"]["body"] == "d"
    page = await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=1, **{"from": context["start"]})
    assert page["chunk"][0]["type"] == "m.room.member"
    by = [{"key": "room_id"}, {"key": "sender"}]
    grouped = await find(alice, "needle", order_by="recent", groupings={"group_by": by}, filter={"limit": 1})
    assert list(grouped["groups"]["sender"]) == [ALICE]
    assert grouped["groups"]["room_id"][ROOM]["order"] == 1
    token = grouped["groups"]["room_id"][ROOM]["next_batch"]
    following = await find(alice, "needle", order_by="recent", token=token)
    assert bodies(following) == ["needle"]
    assert (
        bodies(await find(alice, "needle", order_by="recent", token=grouped["groups"]["sender"][ALICE]["next_batch"]))
        == []
    )


async def test_relations_are_bundled_with_results(
    alice: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    parent = await room.message(ALICE, "needle")
    reply = await room.message(ALICE, "x", **{"m.relates_to": {"rel_type": "m.thread", "event_id": parent.event_id}})
    await index()
    (result,) = (await find(alice, "needle"))["results"]
    thread = result["result"]["unsigned"]["m.relations"]["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (1, reply.event_id)


async def test_bad_searches_are_refused(alice: Client, room: SeededRoom) -> None:
    cases: list[tuple[Any, str]] = [
        ({}, "M_MISSING_PARAM"),
        ({"search_categories": []}, "M_BAD_JSON"),
        ({"search_categories": {"room_events": {}}}, "M_MISSING_PARAM"),
        ({"search_categories": {"room_events": {"search_term": 1}}}, "M_BAD_JSON"),
        ({"search_categories": {"room_events": {"search_term": "x" * 501}}}, "M_INVALID_PARAM"),
        ({"search_categories": {"room_events": {"search_term": "x", "keys": ["content.x"]}}}, "M_INVALID_PARAM"),
        ({"search_categories": {"room_events": {"search_term": "x", "order_by": "best"}}}, "M_INVALID_PARAM"),
        ({"search_categories": {"room_events": {"search_term": "x", "filter": []}}}, "M_INVALID_PARAM"),
        (
            {"search_categories": {"room_events": {"search_term": "x", "groupings": {"group_by": [{}]}}}},
            "M_INVALID_PARAM",
        ),
    ]
    for body, errcode in cases:
        assert await alice.refused("POST", "/search", body) == (400, errcode), body
    body = {"search_categories": {"room_events": {"search_term": "x"}}}
    for token in ("nonsense", "W10", "é", "W251bGwsMSwiJCIsMSxudWxsLG51bGxd"):
        assert await alice.refused("POST", "/search", body, next_batch=token) == (400, "M_INVALID_PARAM")
    assert (await alice.call("POST", "/search", {"search_categories": {}}))[1] == {"search_categories": {}}


async def test_the_number_of_statements_does_not_grow_with_the_results(
    alice: Client, room: SeededRoom, accounts: Database, index: Index
) -> None:
    await listed(accounts, ALICE)
    counts = []
    for number in (2, 30):
        for _ in range(number):
            await room.message(ALICE, "needle in the hay")
        await index()
        async with accounts.counting() as count:
            found = await find(alice, "needle", filter={"limit": 50}, event_context={"include_profile": True})
        counts.append(count.statements)
    assert len(found["results"]) == 32
    assert counts[0] == counts[1] <= 10


async def test_frequent_and_rare_words_are_found_either_way(
    alice: Client, room: SeededRoom, accounts: Database, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listed(accounts, ALICE)
    monkeypatch.setattr(search, "MIN_WINDOW", 1)
    texts = [
        "the oldest whale",
        *(f"the whale {number}" for number in range(12)),
        *(f"the {number}" for number in range(8)),
    ]
    for text in texts:
        await room.message(ALICE, text)
    await index()
    asked: list[str] = []
    real = search._look_up

    async def note(*args: Any) -> search.Hits:
        asked.append("look up")
        return await real(*args)

    monkeypatch.setattr(search, "_look_up", note)
    for windows, looked_up in (((100,), False), ((5, 16), False), ((5, 8), True), ((1,), True)):
        monkeypatch.setattr(search, "LOOKED_THROUGH", windows)
        asked.clear()
        found = await find(alice, "the", order_by="recent", filter={"limit": 10})
        assert bodies(found) == texts[:-11:-1]
        assert bool(asked) is looked_up
    # What is not in the first window is not looked for in the second.
    monkeypatch.setattr(search, "LOOKED_THROUGH", (5, 100))
    asked.clear()
    assert bodies(await find(alice, "oldest")) == ["the oldest whale"]
    assert asked == ["look up"]
    assert sorted(bodies(await find(alice, "whale", filter={"limit": 20}))) == sorted(texts[:13])

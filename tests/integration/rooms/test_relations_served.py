"""What relates to events, listed and bundled. Spec: C-S API §Relationships API, §Aggregations of child events."""

from typing import Any

import httpx
import orjson
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, ROOM, SeededRoom

from matrixcore.events import Event
from matrixcore.identifiers import UserId
from tessera.storage import account_data
from tessera.storage.database import Database


@pytest.fixture
async def alice(http: httpx.AsyncClient, room: SeededRoom) -> Client:
    await room.member(BOB, "join")
    return Client(http, ALICE, "A")


def to(event: Event, rel_type: str, **more: Any) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event.event_id, **more}}


def edit_of(event: Event, text: str) -> dict[str, Any]:
    return {**to(event, "m.replace"), "m.new_content": {"msgtype": "m.text", "body": text}}


async def relations(client: Client, event: Event, path: str = "", **query: Any) -> dict[str, Any]:
    status, reply = await client.call("GET", f"/rooms/{ROOM}/relations/{event.event_id}{path}", version="v1", **query)
    assert status == 200, reply
    answer: dict[str, Any] = reply
    return answer


async def bundled(client: Client, event: Event) -> dict[str, Any]:
    """What /event, /messages and /context say alike is bundled with the event."""
    direct = await client.get(f"/rooms/{ROOM}/event/{event.event_id}")
    context = (await client.get(f"/rooms/{ROOM}/context/{event.event_id}", limit=0))["event"]
    page = (await client.get(f"/rooms/{ROOM}/messages", dir="b", limit=100))["chunk"]
    (paged,) = (shown for shown in page if shown["event_id"] == event.event_id)
    found = [shown["unsigned"].get("m.relations", {}) for shown in (direct, context, paged)]
    assert found[0] == found[1] == found[2]
    relations: dict[str, Any] = found[0]
    return relations


async def ignore(accounts: Database, user_id: UserId, *ignored: UserId) -> None:
    content = orjson.dumps({"ignored_users": {one: {} for one in ignored}})
    async with accounts.transaction() as tx:
        await account_data.set_content(tx, user_id, account_data.GLOBAL, "m.ignored_user_list", content)


async def note_thread(accounts: Database, root: Event, latest: Event, anchor: int, replies: int = 1) -> None:
    await accounts.execute(
        "INSERT INTO rooms.threads (room_id, thread_root, reply_count, latest_event_id, latest_anchor, notify_count,"
        " highlight_all_count) VALUES ($1, $2, $3, $4, $5, 0, 0)",
        ROOM,
        root.event_id,
        replies,
        latest.event_id,
        anchor,
    )


async def test_indirect_relations_are_followed_three_levels_deep(alice: Client, room: SeededRoom) -> None:
    chain = [await room.message(ALICE, "root")]
    for number, rel_type in enumerate(("m.thread", "m.reference", "org.x", "org.x")):
        chain.append(await room.message(ALICE, str(number), **to(chain[-1], rel_type)))
    ids = [event.event_id for event in chain]
    assert [e["event_id"] for e in (await relations(alice, chain[0]))["chunk"]] == ids[1:2]
    found = await relations(alice, chain[0], recurse="true")
    assert [e["event_id"] for e in found["chunk"]] == ids[3:0:-1]
    assert found["recursion_depth"] == 3
    assert (await relations(alice, chain[0], recurse="false"))["recursion_depth"] == 1
    assert "recursion_depth" not in await relations(alice, chain[0])
    only = await relations(alice, chain[0], "/org.x", recurse="true", dir="f")
    assert [e["event_id"] for e in only["chunk"]] == ids[3:4]
    assert (await relations(alice, chain[0], "/org.x/m.sticker", recurse="true"))["chunk"] == []
    page = await relations(alice, chain[0], recurse="true", limit=1)
    following = await relations(alice, chain[0], recurse="true", limit=5, **{"from": page["next_batch"]})
    assert [e["event_id"] for e in following["chunk"]] == ids[2:0:-1]
    assert following["prev_batch"] == page["next_batch"]


async def test_a_redacted_event_breaks_the_chain(alice: Client, room: SeededRoom, accounts: Database) -> None:
    root = await room.message(ALICE, "root")
    child = await room.message(ALICE, "child", **to(root, "m.reference"))
    await room.message(ALICE, "grandchild", **to(child, "m.reference"))
    await accounts.execute("UPDATE rooms.events SET redacted_by = '$r' WHERE event_id = $1", child.event_id)
    assert (await relations(alice, root, recurse="true"))["chunk"] == []
    assert "m.reference" not in await bundled(alice, root)


async def test_only_valid_edits_are_bundled_and_the_newest_wins(alice: Client, room: SeededRoom) -> None:
    original = await room.message(ALICE, "one")
    assert await bundled(alice, original) == {}
    await room.add("org.other", ALICE, edit_of(original, "another type"))
    await room.add("m.room.message", BOB, edit_of(original, "another sender"))
    await room.message(ALICE, "no new content", **to(original, "m.replace"))
    await room.message(ALICE, "in words only", **to(original, "m.replace"), x='"m.new_content":{')
    assert await bundled(alice, original) == {}
    first = await room.add("m.room.message", ALICE, edit_of(original, "two"))
    second = await room.add("m.room.message", ALICE, edit_of(original, "three"))
    await room.add("m.room.message", ALICE, edit_of(second, "an edit of an edit"))
    assert (await bundled(alice, original))["m.replace"]["event_id"] == second.event_id
    assert "m.replace" not in await bundled(alice, first)
    assert "m.replace" not in await bundled(alice, second)
    secret = await room.add("m.room.encrypted", ALICE, {"ciphertext": "x"})
    edit = await room.add("m.room.encrypted", ALICE, {"ciphertext": "y", **to(secret, "m.replace")})
    assert (await bundled(alice, secret))["m.replace"]["event_id"] == edit.event_id


async def test_a_thread_shows_its_latest_event_with_what_relates_to_that(alice: Client, room: SeededRoom) -> None:
    root = await room.message(BOB, "root")
    await room.message(BOB, "first", **to(root, "m.thread"))
    latest = await room.message(BOB, "latest", **to(root, "m.thread"))
    edit = await room.add("m.room.message", BOB, edit_of(latest, "corrected"))
    reference = await room.message(BOB, "see there", **to(latest, "m.reference"))
    thread = (await bundled(alice, root))["m.thread"]
    assert (thread["count"], thread["current_user_participated"]) == (2, False)
    assert thread["latest_event"]["event_id"] == latest.event_id
    inner = thread["latest_event"]["unsigned"]["m.relations"]
    assert inner["m.replace"]["event_id"] == edit.event_id
    assert inner["m.reference"] == {"chunk": [{"event_id": reference.event_id}]}
    await room.message(ALICE, "mine", **to(root, "m.thread"))
    assert (await bundled(alice, root))["m.thread"]["current_user_participated"] is True


async def test_ignored_users_are_left_out_of_lists_and_bundles(
    alice: Client, room: SeededRoom, accounts: Database
) -> None:
    root = await room.message(ALICE, "root")
    kept = await room.message(ALICE, "kept", **to(root, "m.thread"))
    ignored = await room.message(BOB, "ignored", **to(root, "m.thread"))
    await room.message(BOB, "reference", **to(root, "m.reference"))
    assert (await bundled(alice, root))["m.thread"]["latest_event"]["event_id"] == ignored.event_id
    await ignore(accounts, ALICE, BOB)
    found = await bundled(alice, root)
    assert (found["m.thread"]["count"], found["m.thread"]["latest_event"]["event_id"]) == (1, kept.event_id)
    assert "m.reference" not in found
    assert [e["event_id"] for e in (await relations(alice, root))["chunk"]] == [kept.event_id]


async def test_threads_come_by_their_latest_event_and_ignored_roots_are_redacted(
    alice: Client, room: SeededRoom, accounts: Database
) -> None:
    roots, latest = [], []
    for sender in (ALICE, BOB, BOB):
        roots.append(await room.message(sender, "root"))
        latest.append(await room.message(BOB, "reply", **to(roots[-1], "m.thread")))
        await note_thread(accounts, roots[-1], latest[-1], room.position)
    empty = await room.message(ALICE, "no replies any more")
    await note_thread(accounts, empty, empty, room.position, replies=0)

    async def threads(**query: Any) -> Any:
        status, reply = await alice.call("GET", f"/rooms/{ROOM}/threads", version="v1", **query)
        assert status == 200, reply
        return reply

    assert [e["event_id"] for e in (await threads())["chunk"]] == [root.event_id for root in reversed(roots)]
    mine = await threads(include="participated")
    assert [e["event_id"] for e in mine["chunk"]] == [roots[0].event_id]
    page = await threads(limit=2)
    rest = await threads(limit=2, **{"from": page["next_batch"]})
    assert [e["event_id"] for e in rest["chunk"]] == [roots[0].event_id]
    await room.message(ALICE, "now she took part", **to(roots[1], "m.thread"))
    assert len((await threads(include="participated"))["chunk"]) == 2
    await ignore(accounts, ALICE, BOB)
    by_id = {e["event_id"]: e for e in (await threads())["chunk"]}
    assert by_id[roots[2].event_id]["content"] == {}
    assert by_id[roots[0].event_id]["content"]["body"] == "root"


async def test_what_the_reader_cannot_see_is_not_bundled(http: httpx.AsyncClient, room: SeededRoom) -> None:
    await room.member(CAROL, "join")
    await room.add("m.room.history_visibility", ALICE, {"history_visibility": "joined"}, state_key="")
    original = await room.message(ALICE, "before")
    await room.member(CAROL, "leave")
    await room.add("m.room.message", ALICE, edit_of(original, "while she was away"))
    await room.message(ALICE, "a thread", **to(original, "m.thread"))
    await room.member(CAROL, "join")
    carol = Client(http, CAROL, "C")
    assert await bundled(carol, original) == {}
    assert (await relations(carol, original))["chunk"] == []


async def test_relations_of_what_nobody_may_see(http: httpx.AsyncClient, alice: Client, room: SeededRoom) -> None:
    root = await room.message(ALICE, "root")
    path = f"/rooms/{ROOM}/relations/{root.event_id}"
    assert (await Client(http, CAROL, "C").call("GET", path, version="v1"))[0] == 404
    assert (await alice.call("GET", f"/rooms/{ROOM}/relations/$nothing", version="v1"))[0] == 404
    assert (await alice.call("GET", path, version="v1", recurse="perhaps"))[0] == 400
    assert (await alice.call("GET", path, version="v1", dir="x"))[0] == 400


async def test_bundles_take_the_same_statements_for_few_and_many(
    alice: Client, room: SeededRoom, accounts: Database
) -> None:
    counts = []
    for number in (1, 10):
        for _ in range(number):
            root = await room.message(ALICE, "root")
            reply = await room.message(ALICE, "reply", **to(root, "m.thread"))
            await room.add("m.room.message", ALICE, edit_of(reply, "edited"))
            await room.message(ALICE, "reference", **to(root, "m.reference"))
        async with accounts.counting() as count:
            await alice.get(f"/rooms/{ROOM}/messages", dir="b", limit=100)
        counts.append(count.statements)
    assert counts[0] == counts[1] <= 7


async def test_no_thread_begins_at_an_event_that_relates_to_another(alice: Client, room: SeededRoom) -> None:
    root = await room.message(ALICE, "root")
    child = await room.message(ALICE, "child", **to(root, "m.reference"))
    body = {"msgtype": "m.text", "body": "x", **to(child, "m.thread")}
    refusal = await alice.refused("PUT", f"/rooms/{ROOM}/send/m.room.message/1", body)
    assert refusal == (400, "M_UNKNOWN")

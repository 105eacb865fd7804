"""Erased users in /sync: who heard them keeps their words. Spec: C-S API §Account deactivation; MSC4025."""

from typing import Any

from sync_world import ALICE, BOB, CAROL, World

from matrixcore.identifiers import RoomId
from tessera.storage import users


async def erase(world: World) -> None:
    async with world.accounts.transaction() as tx:
        await users.add_user(tx, CAROL, password_hash=None, displayname=None, now_ms=1)
        await users.deactivate(tx, CAROL, erase=True)


def messages(answer: dict[str, Any], room_id: RoomId, membership: str = "join") -> list[dict[str, Any]]:
    events = answer["rooms"][membership][room_id]["timeline"]["events"]
    return [event for event in events if event["type"] == "m.room.message"]


async def test_what_an_erased_user_said_is_kept_by_who_heard_it(world: World) -> None:
    room_id = await world.room(ALICE, CAROL)
    original = await world.say(room_id, CAROL, "old words")
    edit = {"m.new_content": {"msgtype": "m.text", "body": "newer"}}
    relation = {"m.relates_to": {"rel_type": "m.replace", "event_id": original}}
    await world.say(room_id, CAROL, "* newer", **edit, **relation)
    await world.member(room_id, CAROL, "leave")
    await erase(world)
    await world.member(room_id, BOB, "join")
    await world.say(room_id, ALICE, "hello")
    heard = messages(await world.client(ALICE).sync(), room_id)
    assert [event["content"].get("body") for event in heard] == ["old words", "* newer", "hello"]
    unheard = messages(await world.client(BOB).sync(), room_id)
    assert [event["content"].get("body") for event in unheard] == [None, None, "hello"]
    assert "m.relations" not in unheard[0]["unsigned"]
    assert unheard[0]["sender"] == CAROL
    # Also for who left: the stay as it was.
    await world.member(room_id, BOB, "leave")
    left = await world.client(BOB).sync(filter={"room": {"include_leave": True}})
    assert [event["content"].get("body") for event in messages(left, room_id, "leave")] == [None, None, "hello"]


async def test_an_erased_user_is_not_quoted_by_a_thread_either(world: World) -> None:
    room_id = await world.room(ALICE, CAROL)
    root = await world.say(room_id, ALICE, "root")
    await world.say(room_id, CAROL, "answer", **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    await erase(world)
    await world.member(room_id, BOB, "join")

    def latest(answer: dict[str, Any]) -> Any:
        (event,) = [event for event in messages(answer, room_id) if event["event_id"] == root]
        assert event["content"]["body"] == "root"
        return event["unsigned"]["m.relations"]["m.thread"]["latest_event"]["content"]

    assert latest(await world.client(ALICE).sync())["body"] == "answer"
    assert latest(await world.client(BOB).sync()) == {}

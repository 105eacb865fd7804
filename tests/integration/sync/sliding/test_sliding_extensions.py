"""Extensions of sliding sync: devices, account data, receipts, typing. Spec: MSC4186 §Extensions."""

from typing import Any

from sliding_client import SlidingClient, one_list, wish
from sync_world import ALICE, BOB, CAROL, World

from tessera.fanout import DeviceWake, TypingChange
from tessera.storage import device_changes, to_device
from tessera.storage.device_changes import DeviceChange
from tessera.storage.to_device import OutgoingMessage

ON = {"enabled": True}


async def told(client: SlidingClient, *names: str, **body: Any) -> dict[str, Any]:
    """What these extensions say."""
    body.setdefault("lists", one_list())
    extensions: dict[str, Any] = (await client.sync(extensions=dict.fromkeys(names, ON), **body))["extensions"]
    return extensions


async def test_to_device_messages_stay_until_they_are_confirmed(world: World) -> None:
    bob = SlidingClient(world, BOB)
    for number in range(3):
        await world.send_to_device(ALICE, BOB, "D", {"number": number})
    await world.send_to_device(ALICE, BOB, "E", {"number": 9})

    async def ask(**wish: Any) -> dict[str, Any]:
        answer = await bob.sync(extensions={"to_device": {**ON, **wish}})
        news: dict[str, Any] = answer["extensions"]["to_device"]
        return news

    async def stored() -> list[bytes]:
        async with world.accounts.reading() as tx:
            return [message.content for message in await to_device.list_messages(tx, BOB, "D", 0)]

    first = await ask(limit=2)
    assert [event["content"]["number"] for event in first["events"]] == [0, 1]
    assert (first["events"][0]["sender"], first["events"][0]["type"]) == (ALICE, "m.test")
    assert [event["content"]["number"] for event in (await ask())["events"]] == [0, 1, 2]
    assert len(await stored()) == 3
    second = await ask(since=first["next_batch"])
    assert [event["content"]["number"] for event in second["events"]] == [2]
    assert len(await stored()) == 1
    third = await ask(since=second["next_batch"])
    assert (third["events"], await stored()) == ([], [])
    await world.send_to_device(ALICE, BOB, "D", {"number": 5})
    assert [event["content"]["number"] for event in (await ask(since=third["next_batch"]))["events"]] == [5]


async def test_a_process_that_has_not_heard_yet_tells_no_message_twice(world: World) -> None:
    bob = SlidingClient(world, BOB)
    await bob.sync(extensions={"to_device": ON})
    message = OutgoingMessage(BOB, "D", b'{"number":1}')
    async with world.accounts.transaction() as tx:  # and nobody is woken
        heads = await to_device.add_messages(tx, ALICE, "m.test", [message])
    state = await world.services[0].instance.users.get(BOB)
    assert state.log_head < heads[BOB]
    told = {"extensions": {"to_device": {**ON, "since": f"d{heads[BOB]}"}}}
    assert (await bob.sync(**told))["extensions"]["to_device"]["events"] == []
    async with world.accounts.reading() as tx:
        assert await to_device.list_messages(tx, BOB, "D", 0) == []


async def test_key_counts_and_device_lists(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    assert (await told(bob, "e2ee"))["e2ee"] == {
        "device_one_time_keys_count": {"signed_curve25519": 0},
        "device_unused_fallback_key_types": [],
    }
    async with world.accounts.transaction() as tx:
        position = await device_changes.add_changes(tx, [DeviceChange(ALICE, "A1")])
    await world.fanout.publish_device_wake(DeviceWake(position, ()))
    await world.services[0].instance.tell({}, with_devices=True)
    assert (await told(bob, "e2ee"))["e2ee"]["device_lists"] == {"changed": [ALICE], "left": []}
    assert "device_lists" not in (await told(bob, "e2ee"))["e2ee"]
    await world.member(room_id, CAROL, "join")
    assert (await told(bob, "e2ee"))["e2ee"]["device_lists"] == {"changed": [CAROL], "left": []}
    await world.member(room_id, CAROL, "leave")
    assert (await told(bob, "e2ee"))["e2ee"]["device_lists"] == {"changed": [], "left": [CAROL]}


async def test_account_data_of_the_user_and_of_rooms_in_the_window(world: World) -> None:
    room_id = await world.room(BOB, name="r")
    await world.set_data(BOB, "m.mine", {"a": 1})
    await world.set_data(BOB, "m.tag", {"tags": {"u": {}}}, room_id)
    bob = SlidingClient(world, BOB)
    first = (await told(bob, "account_data"))["account_data"]
    assert {event["type"] for event in first["global"]} == {"m.mine", "m.push_rules"}
    assert first["rooms"] == {room_id: [{"type": "m.tag", "content": {"tags": {"u": {}}}}]}
    assert "account_data" not in await told(bob, "account_data")
    await world.set_data(BOB, "m.mine", {"a": 2})
    await world.set_data(BOB, "m.more", {"b": 1}, room_id)
    assert (await told(bob, "account_data"))["account_data"] == {
        "global": [{"type": "m.mine", "content": {"a": 2}}],
        "rooms": {room_id: [{"type": "m.more", "content": {"b": 1}}]},
    }
    # What changed while the room was not asked for comes when it is again.
    await bob.sync(extensions={"account_data": ON})
    await world.set_data(BOB, "m.more", {"b": 2}, room_id)
    assert "account_data" not in (await bob.sync(extensions={"account_data": ON}))["extensions"]
    again = (await told(bob, "account_data"))["account_data"]["rooms"][room_id]
    assert {"type": "m.more", "content": {"b": 2}} in again


async def test_receipts(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    old, new = await world.say(room_id, ALICE, "old"), await world.say(room_id, ALICE, "new")
    await world.read(room_id, CAROL, old)
    await world.read(room_id, ALICE, new)
    bob = SlidingClient(world, BOB)
    first = (await told(bob, "receipts", lists=one_list(9, 1)))["receipts"]["rooms"][room_id]
    assert set(first["content"]) == {new}  # of what the client has
    assert list(first["content"][new]["m.read"]) == [ALICE]
    assert "receipts" not in await told(bob, "receipts", lists=one_list(9, 1))
    newest = await world.say(room_id, BOB, "newest")
    await world.read(room_id, ALICE, newest)
    second = await bob.sync(extensions={"receipts": ON}, lists=one_list(9, 1))
    assert set(second["extensions"]["receipts"]["rooms"][room_id]["content"]) == {newest}
    await world.read(room_id, BOB, new, "m.read.private")
    private = (await told(bob, "receipts", lists=one_list(9, 1)))["receipts"]["rooms"][room_id]
    assert list(private["content"][new]["m.read.private"]) == [BOB]
    assert "receipts" not in await told(SlidingClient(world, ALICE), "receipts", lists={})


async def test_receipts_alone_tell_no_room(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    said = await world.say(room_id, BOB, "x")
    bob = SlidingClient(world, BOB)
    await told(bob, "receipts")
    await world.read(room_id, ALICE, said)
    answer = await bob.sync(extensions={"receipts": ON}, lists=one_list())
    assert answer["rooms"] == {}
    assert set(answer["extensions"]["receipts"]["rooms"]) == {room_id}


async def test_reading_elsewhere_brings_the_counts(world: World) -> None:
    room_id = await world.room(ALICE, BOB)
    said = await world.say(room_id, ALICE, "x")
    bob = SlidingClient(world, BOB)
    assert (await bob.sync(lists=one_list()))["rooms"][room_id]["notification_count"] == 1
    await world.read(room_id, BOB, said)
    room = (await bob.sync(lists=one_list()))["rooms"][room_id]
    assert room["notification_count"] == 0
    assert "timeline" not in room


async def test_typing(world: World) -> None:
    room_id, other = await world.room(ALICE, BOB), await world.room(ALICE, BOB)
    bob = SlidingClient(world, BOB)
    await told(bob, "typing")
    for where in (room_id, other):
        await world.fanout.publish_typing(TypingChange(where, ALICE, 10_000))
    scoped = {"typing": {**ON, "rooms": [room_id], "lists": []}}
    answer = await bob.sync(room_subscriptions={room_id: wish(), other: wish()}, extensions=scoped)
    event = {"type": "m.typing", "content": {"user_ids": [ALICE]}}
    assert answer["extensions"] == {"typing": {"rooms": {room_id: event}}}
    await world.fanout.publish_typing(TypingChange(room_id, ALICE, 0))
    assert (await told(bob, "typing"))["typing"]["rooms"][room_id]["content"] == {"user_ids": []}
    fresh = await told(SlidingClient(world, BOB, "E"), "typing")
    assert set(fresh["typing"]["rooms"]) == {other}

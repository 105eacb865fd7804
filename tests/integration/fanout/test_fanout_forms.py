"""What both fan-outs do."""

import asyncio

from fanout_listening import ALICE, BOB, OTHER_ROOM, ROOM, Ends, Listener, batch, outcome, record

from tessera.fanout import DeviceWake, PresenceChange, SessionEnd, Subscriber, TypingChange, UserWake
from tessera.records import PartitionBatch


async def test_followed_partitions_are_heard_at_once_and_no_others(ends: Ends) -> None:
    listener = Listener()
    subscription = await listener.subscribe(ends.there)
    await subscription.follow_partitions([3, 4])
    await ends.here.publish_batches([batch(1, 2), batch(1, 1, partition=5), batch(9, 9, partition=4)], [])
    await listener.until(lambda: len(listener.of("batch")) == 2)
    assert listener.of("batch") == [batch(1, 2), batch(9, 9, partition=4)]
    await subscription.follow_partitions([4, 5])
    await ends.here.publish_batches([batch(3, 3), batch(2, 2, partition=5)], [])
    await listener.until(lambda: len(listener.of("batch")) == 3)
    assert listener.of("batch")[-1] == batch(2, 2, partition=5)


async def test_users_are_followed_and_left(ends: Ends) -> None:
    listener = Listener()
    subscription = await listener.subscribe(ends.there)
    await subscription.follow_users([ALICE, BOB])
    await ends.here.publish_user_wakes([UserWake(ALICE, 5), UserWake(BOB, 6)])
    await listener.until(lambda: sum(map(len, listener.of("user_wakes"))) == 2)
    assert [wake for wakes in listener.of("user_wakes") for wake in wakes] == [UserWake(ALICE, 5), UserWake(BOB, 6)]
    await subscription.unfollow_users([ALICE])
    await ends.here.publish_user_wakes([UserWake(ALICE, 7), UserWake(BOB, 8)])
    await listener.until(lambda: [UserWake(BOB, 8)] in listener.of("user_wakes"))
    assert [UserWake(ALICE, 7)] not in listener.of("user_wakes")


async def test_what_concerns_everybody_reaches_everybody(ends: Ends) -> None:
    listeners = [Listener(), Listener()]
    for listener in listeners:
        await listener.subscribe(ends.there)
    device = DeviceWake(12, (ALICE, BOB))
    typing = TypingChange(ROOM, ALICE, 30_000)
    presence = PresenceChange(ALICE, "online", "hé", 1_700_000_000_000, True)
    ended = [SessionEnd(ALICE, "DEVICE"), SessionEnd(BOB)]
    await ends.here.publish_device_wake(device)
    await ends.here.publish_typing(typing)
    await ends.here.publish_presence(presence)
    await ends.here.publish_session_ends(ended)
    for listener in listeners:
        await listener.until(lambda listener=listener: len(listener.of("session_end")) == 2)  # type: ignore[misc]
        told = [*listener.of("device_wake"), *listener.of("typing"), *listener.of("presence")]
        assert told == [device, typing, presence]
        assert listener.of("session_end") == ended


async def test_outcomes_reach_those_who_wait(ends: Ends) -> None:
    first, second = Listener(), Listener()
    addresses = [(await listener.subscribe(ends.there)).reply_address for listener in (first, second)]
    one, two = outcome(b"one"), outcome(b"two")
    both = {one.command_id: addresses, two.command_id: addresses[1:]}
    await ends.here.publish_batches([], [one, two], both)
    await second.until(lambda: sum(map(len, second.of("outcomes"))) == 2)
    await first.until(lambda: bool(first.of("outcomes")))
    assert [told for outcomes in second.of("outcomes") for told in outcomes] == [one, two]
    assert one in first.of("outcomes")[0]


async def test_a_listener_that_raises_harms_nobody(ends: Ends) -> None:
    listener = Listener()

    def fail(_: PartitionBatch) -> None:
        raise RuntimeError("a listener's fault")

    for subscriber in (Subscriber(on_batch=fail), listener.subscriber()):
        await (await ends.there.subscribe(subscriber)).follow_partitions([3])
    await ends.here.publish_batches([batch(1, 1)], [])
    await listener.until(lambda: listener.of("batch") == [batch(1, 1)])


async def test_nothing_comes_after_the_end(ends: Ends) -> None:
    gone, listener = Listener(), Listener()
    subscriptions = [await one.subscribe(ends.there) for one in (gone, listener)]
    for subscription in subscriptions:
        await subscription.follow_partitions([3])
        await subscription.follow_users([ALICE])
    await subscriptions[0].close()
    await ends.here.publish_batches([batch(1, 1)], [])
    await ends.here.publish_user_wakes([UserWake(ALICE, 1)])
    await listener.until(lambda: set(listener.kinds()) == {"batch", "user_wakes"})
    assert gone.heard == []


async def test_records_of_unwanted_rooms_may_be_left_out(ends: Ends) -> None:
    listener = Listener(wants_room=lambda room_id: room_id == OTHER_ROOM)
    await (await listener.subscribe(ends.there)).follow_partitions([3])
    mixed = PartitionBatch(1, 3, 1, 3, (record(1), record(2, OTHER_ROOM), record(3)))
    await ends.here.publish_batches([mixed], [])
    await listener.until(lambda: bool(listener.of("batch")))
    (heard,) = listener.of("batch")
    assert (heard.first, heard.last) == (1, 3)
    assert [one for one in heard.records if one.room_id == OTHER_ROOM] == [record(2, OTHER_ROOM)]


async def test_many_users_at_once(ends: Ends) -> None:
    listener = Listener()
    subscription = await listener.subscribe(ends.there)
    users = [type(ALICE)(f"@user{number}:test.example") for number in range(1_200)]
    await asyncio.gather(*(subscription.follow_users([user_id]) for user_id in users))
    await ends.here.publish_user_wakes([UserWake(user_id, 1) for user_id in users])
    await listener.until(lambda: sum(map(len, listener.of("user_wakes"))) == len(users))
    assert ends.there.is_healthy

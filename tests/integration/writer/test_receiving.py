"""PDUs of other servers through the real writer. Spec: S-S API §Checks performed on receipt of a PDU."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from remote_room import CARLA, DORA, remote_room
from writer_world import ALICE, BOB, KEY, SERVER, World, message

from matrixcore.event_signing import sign_event
from matrixcore.events import Event
from matrixcore.identifiers import RoomId
from services.rooms import room_past
from services.rooms.judging import Judged, Missing, judge_outlier
from services.rooms.room_past import RoomPast
from services.rooms.room_work import RoomWork
from tessera.commands import Append, AppendPdu, NewEvent, OutcomeStatus, ReceivePdus, Unpark
from tessera.records import LogRecord, RecordKind, StateBody, StateMembership, encode_record
from tessera.storage import inbox

ALL_VERSIONS = ["1", "2", "6", "10", "11", "12"]


def told(world: World, event: Event) -> list[LogRecord]:
    """The records of an event."""
    return [
        record
        for records in world.published_records().values()
        for record in records
        if record.kind is RecordKind.EVENT and record.event.event_id == event.event_id
    ]


async def check_read_back(world: World) -> None:
    """What is read from PostgreSQL is what was published."""
    published, stored = world.published_records(), await world.stored_records()
    for partition, records in stored.items():
        assert [record.position for record in records] == list(range(1, len(records) + 1))
        assert [encode_record(r) for r in records] == [encode_record(r) for r in published[partition]]


@pytest.mark.parametrize("version", ALL_VERSIONS)
async def test_a_linear_room_takes_events_in(any_world: World, version: str) -> None:
    world = any_world
    async with world.writer():
        room = await remote_room(world, version)
        events = [room.message("hello"), room.topic("t"), room.join(DORA)]
        outcome = await room.deliver(*events)
        assert list(outcome.event_ids) == [event.event_id for event in events]
        assert await room.current() == room.after[room.tip]
        assert await room.extremities() == {room.tip}
        assert await room.inbox_states() == []
        assert [len(told(world, event)) for event in events] == [1, 1, 1]
        sent = await world.accepted(room.room_id, message())  # on top of what came in
        assert (await room.extremities()) == set(sent.event_ids)
    await check_read_back(world)


async def test_an_event_is_taken_in_once(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        event = room.message("hello")
        await room.deliver(event)
        again = await room.deliver(event)
        assert again.event_ids == ()
        assert len(told(world, event)) == 1
        assert await room.inbox_states() == []


async def test_a_batch_of_linear_events_costs_few_statements(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        counts = []
        for size in (2, 40):
            inbox_ids = await room.put(*[room.message(str(number)) for number in range(size)])
            async with world.shards.of_room(room.room_id).counting() as count:
                await room.name(inbox_ids)
            counts.append(count.statements)
        assert counts[0] == counts[1] <= 7


@pytest.mark.parametrize("version", ["2", "11", "12"])
async def test_a_fork_keeps_both_ends_and_resolves_the_state(world: World, version: str) -> None:
    async with world.writer():
        room = await remote_room(world, version)
        root = room.tip
        left = room.topic("left", prev=[root])
        right = room.topic("right", prev=[root])
        await room.deliver(left)
        await room.deliver(right)
        ends = [left.event_id, right.event_id]
        assert await room.extremities() == set(ends)
        assert await room.current() == room.before(ends)
        merge = room.message("merge", prev=ends)
        await room.deliver(merge)
        assert await room.extremities() == {merge.event_id}
        assert await room.current() == room.after[merge.event_id]
    await check_read_back(world)


async def test_what_no_event_explains_is_told_as_state(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        older = room.topic("older", prev=[root], at_ms=1)
        branch = room.message("on the root", prev=[root])
        name = room.make("m.room.name", {"name": "n"}, state_key="", prev=[branch.event_id])
        await room.deliver(older)
        # Both come at once on a branch that does not know the topic: each explains itself.
        await room.deliver(branch, name)
        kinds = [r.kind for records in world.published_records().values() for r in records]
        assert RecordKind.STATE not in kinds
        # Another topic, on the branch and later: it wins.
        newer = room.topic("newer", prev=[name.event_id])
        await room.deliver(newer)
        assert (await room.current())["m.room.topic", ""] == newer.event_id
        # One on the branch of the first, made before: it does not win, and is shown all the same.
        loser = room.topic("loser", prev=[older.event_id], at_ms=2)
        await room.deliver(loser)
        assert (await room.current())["m.room.topic", ""] == newer.event_id
        (record,) = told(world, loser)
        assert record.event.forked
        assert record.event.replaces_state is None
    await check_read_back(world)


async def test_a_ban_that_comes_late_undoes_what_stood_on_its_absence(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        banned = room.topic("by carla", prev=[root])
        await room.deliver(banned)
        ban = room.make("m.room.member", {"membership": "ban"}, sender=ALICE, state_key=CARLA, prev=[root])
        await room.deliver(ban)
        ends = [banned.event_id, ban.event_id]
        current = await room.current()
        assert current == room.before(ends)
        assert ("m.room.topic", "") not in current
        states = [
            r.body for records in world.published_records().values() for r in records if r.kind is RecordKind.STATE
        ]
        assert states == [StateBody((("m.room.topic", "", None),))]
        # On the branch that does not know the ban she may write, but the room as it is does not want it.
        late = room.message("late", prev=[banned.event_id])
        await room.deliver(late)
        row = await room.row(late)
        assert row["soft_failed"] is not None
        assert row["anchor"] is None
        assert told(world, late) == []
        assert await room.extremities() == set(ends)
        # Whoever refers to it is judged by its place, and its prev events are no ends any more.
        merge = room.message("merge", sender=ALICE, prev=[late.event_id, ban.event_id])
        await room.deliver(merge)
        assert len(told(world, merge)) == 1
        assert await room.extremities() == {merge.event_id}
        assert await room.current() == room.after[merge.event_id]
    await check_read_back(world)


async def test_what_the_rules_forbid_is_rejected_and_stays_out_of_the_state(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root, state = room.tip, room.after[room.tip]
        bad = room.make("m.room.power_levels", {"users": {CARLA: 100}}, state_key="", prev=[root])
        await room.deliver(bad)
        row = await room.row(bad)
        assert row["rejected"] is not None
        assert await room.current() == state
        assert await room.extremities() == {root}
        room.after[bad.event_id] = state  # the state after a rejected event is that before it
        child = room.message("on top of it", prev=[bad.event_id])
        await room.deliver(child)
        assert len(told(world, child)) == 1
        assert await room.extremities() == {child.event_id}
        cites = room.message("cites it", prev=[child.event_id], auth=[*child.auth_events[:1], bad.event_id])
        await room.deliver(cites)
        assert (await room.row(cites))["rejected"] is not None


async def test_a_gap_parks_and_the_ancestor_sets_free(any_world: World) -> None:
    world = any_world
    async with world.writer():
        room = await remote_room(world)
        events = [room.message(str(number)) for number in range(6)]
        await room.deliver(events[3], events[5])
        await room.deliver(events[4])
        assert await room.inbox_states() == ["parked"] * 3
        async with world.shards.of_room(room.room_id).reading() as tx:
            missing = await inbox.list_missing(tx, room.room_id, 10)
        assert {one.event_id for one in missing} == {events[2].event_id, events[4].event_id} | {events[3].event_id}
        await room.deliver(events[2])
        await room.deliver(events[1], events[0])
        assert await room.inbox_states() == []
        assert await room.extremities() == {events[5].event_id}
        assert [len(told(world, event)) for event in events] == [1] * 6
        assert await world.shards.of_room(room.room_id).fetchval("SELECT count(*) FROM rooms.missing_events") == 0
    await check_read_back(world)


async def test_staged_ancestors_are_taken_in_by_unpark(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        events = [room.message(str(number)) for number in range(5)]
        await room.deliver(events[4])
        await room.put(*reversed(events[:4]), state="staged")
        outcome = await world.accepted(room.room_id, Unpark(), BOB)
        assert set(outcome.event_ids) == {event.event_id for event in events}
        assert await room.inbox_states() == []
        assert await room.extremities() == {events[4].event_id}


async def test_a_pdu_that_comes_while_it_is_taken_in_as_an_outlier(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was told that it is here: it must become part of the DAG, as it would have a moment later."""
    async with world.writer():
        room = await remote_room(world)
        topic = room.topic("at the same time")
        (inbox_id,) = await room.put(topic, state="staged", outlier=True)

        async def overtaken(work: RoomWork, past: RoomPast, event: Event) -> Judged | Missing:
            assert await room.put(event) == [inbox_id]
            return await judge_outlier(work, past, event)

        monkeypatch.setattr("services.rooms.receiving.judge_outlier", overtaken)
        await room.name([inbox_id])
        assert (await room.row(topic))["outlier"]
        assert await room.inbox_states() == ["new"]  # so that whoever does not name it again is stood in for
        await room.name([inbox_id])
        assert not (await room.row(topic))["outlier"]
        assert await room.inbox_states() == []
        assert await room.extremities() == {topic.event_id}


async def test_a_pdu_that_comes_while_the_outlier_that_it_was_is_set_free(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parked it would wait for nothing any more, and nobody would name it."""
    async with world.writer():
        room = await remote_room(world)
        member = room.join(DORA)
        topic = room.topic("at the same time", sender=DORA)
        (inbox_id,) = await room.put(topic, outlier=True)
        await room.name([inbox_id])
        assert await room.inbox_states() == ["parked"]

        async def overtaken(work: RoomWork, past: RoomPast, event: Event) -> Judged | Missing:
            assert await room.put(event) == [inbox_id]
            return await judge_outlier(work, past, event)

        monkeypatch.setattr("services.rooms.receiving.judge_outlier", overtaken)
        await room.deliver(member)
        assert (await room.row(topic))["outlier"]
        assert await world.shards.of_room(room.room_id).fetchval("SELECT count(*) FROM rooms.missing_events") == 0
        assert await room.inbox_states() == ["new"]
        await room.name([inbox_id])
        assert not (await room.row(topic))["outlier"]
        assert await room.extremities() == {topic.event_id}


async def test_what_an_outlier_waits_for_is_an_ancestor_once_it_is_sent(world: World) -> None:
    """As an outlier that would not set it free, and nobody would ask for more of it."""
    async with world.writer():
        room = await remote_room(world)
        member = room.join(DORA)
        topic = room.topic("first an outlier", sender=DORA)
        await room.deliver(topic, outlier=True)
        await room.deliver(topic)
        async with world.shards.of_room(room.room_id).reading() as tx:
            assert [tuple(one) for one in await inbox.list_missing(tx, room.room_id, 10)] == [(member.event_id, False)]
        assert await room.inbox_states() == ["parked"]
        await room.deliver(member)
        assert await room.extremities() == {topic.event_id}
        assert await room.inbox_states() == []


async def test_an_outlier_that_is_backfilled_is_history(world: World) -> None:
    """Not something that happens now, at the end of the room."""
    async with world.writer():
        room = await remote_room(world)
        topic = room.topic("long ago")
        await room.put(topic, state="staged", outlier=True)
        (inbox_id,) = await room.put(topic, below=7)
        async with world.shards.of_room(room.room_id).reading() as tx:
            (row,) = await inbox.load(tx, room.room_id, [inbox_id])
        assert (row.outlier, row.below, row.state) == (False, 7, "new")


async def test_an_auth_event_suffices_as_an_outlier(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        member = room.join(DORA, prev=[root])  # on a branch that never comes
        room.tip = root
        event = room.message("x", prev=[root], auth=[room.after[root]["m.room.create", ""], member.event_id])
        await room.deliver(event)
        async with world.shards.of_room(room.room_id).reading() as tx:
            assert [tuple(one) for one in await inbox.list_missing(tx, room.room_id, 10)] == [(member.event_id, True)]
        await room.deliver(member, outlier=True)
        assert (await room.row(member))["outlier"]
        assert (await room.row(event))["rejected"] is not None  # it cites what is not its to cite
        assert await room.inbox_states() == []
        await room.deliver(member)  # and now as part of the DAG
        assert not (await room.row(member))["outlier"]
        assert len(told(world, member)) == 1


async def test_nonsense_is_dropped(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        event = room.message("x")
        ids = await room.put(event)
        await world.shards.of_room(room.room_id).execute("UPDATE rooms.inbox SET pdu = '{}'")
        assert (await room.name(ids)).event_ids == ()
        assert await room.inbox_states() == []
        assert await room.row(event) is None


async def test_a_wrong_content_hash_redacts(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        event = room.message("x")
        ids = await room.put(event)
        await world.shards.of_room(room.room_id).execute(
            "UPDATE rooms.inbox SET pdu = $1", event.pdu.replace(b'"body":"x"', b'"body":"forged"')
        )
        await room.name(ids)
        (record,) = told(world, event)
        assert b"forged" not in record.event.client


@pytest.mark.parametrize("version", ["10", "11"])
async def test_a_redaction_meets_its_target_in_either_order(world: World, version: str) -> None:
    async with world.writer():
        room = await remote_room(world, version)
        first = room.message("secret one")
        redaction = room.make("m.room.redaction", {}, redacts=first.event_id)
        await room.deliver(first, redaction)
        assert b"secret" not in (await room.row(first))["pdu"]
        root = room.tip
        second = room.message("secret two", prev=[root])
        early = room.make("m.room.redaction", {}, redacts=second.event_id, prev=[root])
        await room.deliver(early)
        assert told(world, early) == []
        await room.deliver(second)
        (record,) = told(world, second)
        assert b"secret" not in record.event.client
        assert record.event.redacted
        row = await room.row(second)
        assert row["redacted_by"] == early.event_id
        assert b"secret two" in row["original_pdu"]
        assert await room.extremities() == {early.event_id, second.event_id}


async def test_a_finished_pdu_is_appended_once(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        invite = room.make("m.room.member", {"membership": "invite"}, sender=ALICE, state_key=DORA)
        signed = sign_event(invite, SERVER, KEY)
        outcome = await world.accepted(room.room_id, AppendPdu(signed.pdu, "DEV", "txn"))
        assert outcome.event_ids == (invite.event_id,)
        again = await world.accepted(room.room_id, AppendPdu(signed.pdu, "DEV", "txn"))
        assert again.event_ids == outcome.event_ids
        (record,) = told(world, invite)
        assert (record.event.sender_device, record.event.txn_id) == ("DEV", "txn")
        assert record.event.servers == ("there.org",)
    await check_read_back(world)


async def test_a_finished_pdu_is_refused_as_a_local_event_would_be(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        stale = room.topic("stale", prev=[root])
        eve = room.make("m.room.message", {}, sender=BOB, prev=[root], auth=stale.auth_events)
        for pdu, sender, status in (
            (b"{}", CARLA, 400),
            (stale.pdu, ALICE, 400),  # not the sender's
            (eve.pdu, BOB, 403),  # not in the room
        ):
            outcome = await world.submit(world.command(room.room_id, AppendPdu(pdu), sender))
            assert (outcome.status, outcome.http_status) == (OutcomeStatus.REFUSED, status)
        kick = Append(NewEvent("m.room.member", CARLA, {"membership": "leave"}))
        await world.accepted(room.room_id, kick)
        outcome = await world.submit(world.command(room.room_id, AppendPdu(stale.pdu), CARLA))
        assert outcome.http_status == 403  # it was allowed where it stands, and is not any more
        assert await room.row(stale) is None
    await check_read_back(world)


async def test_a_local_users_membership_that_a_resolution_takes_away_is_in_the_outcome(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        # Carla, who may invite, invites Bob on one branch; on the other she was banned before.
        invite = room.make("m.room.member", {"membership": "invite"}, sender=CARLA, state_key=BOB, prev=[root])
        ban = room.make("m.room.member", {"membership": "ban"}, sender=ALICE, state_key=CARLA, prev=[root])
        invited = await room.deliver(invite)
        assert [(d.user_id, d.membership) for d in invited.memberships] == [(BOB, "invite")]
        banned = await room.deliver(ban)
        assert await room.current() == room.before([invite.event_id, ban.event_id])
        assert [(d.user_id, d.membership, d.prev_membership) for d in banned.memberships] == [(BOB, "leave", "invite")]
        (changed,) = [
            r for records in world.published_records().values() for r in records if r.kind is RecordKind.STATE
        ]
        gone = StateMembership(BOB, "leave", invite.event_id, CARLA)
        assert changed.body == StateBody((("m.room.member", BOB, None),), None, (gone,))
        assert [d.position for d in banned.memberships] == [changed.position]
        query = "SELECT joined_count, invited_count FROM rooms.rooms WHERE room_id = $1"
        assert tuple(await world.shards.of_room(room.room_id).fetchrow(query, room.room_id)) == (1, 0)
        # The other way round the invite loses at once: it is shown to nobody, and invites nobody.
        other = await remote_room(world)
        root = other.tip
        invite = other.make("m.room.member", {"membership": "invite"}, sender=CARLA, state_key=BOB, prev=[root])
        ban = other.make("m.room.member", {"membership": "ban"}, sender=ALICE, state_key=CARLA, prev=[root])
        await other.deliver(ban)
        assert (await other.deliver(invite)).memberships == ()
        assert told(world, invite) == []


async def test_the_writer_begins_cold_where_it_forked(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        left, right = (
            room.topic("left", prev=[root]),
            room.make("m.room.name", {"name": "r"}, state_key="", prev=[root]),
        )
        await room.deliver(left, right)
    async with world.writer():
        end = room.message("on one end", prev=[left.event_id])
        await room.deliver(end)
        assert await room.extremities() == {end.event_id, right.event_id}
        assert await room.current() == room.before([end.event_id, right.event_id])
        sent = await world.accepted(room.room_id, message("on both"))
        assert await room.extremities() == set(sent.event_ids)
    await check_read_back(world)


async def test_a_room_that_is_not_here_leaves_its_inbox_alone(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        ids = await room.put(room.message("x"))
        unknown = RoomId("!unknown:here.org")
        await world.accepted(unknown, ReceivePdus(tuple(ids)))
        assert await room.inbox_states() == ["new"]


async def test_a_large_resolution_leaves_the_event_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_past, "EVENTS_ON_THE_LOOP", 1)
    threads: list[Callable[..., object]] = []
    to_thread = asyncio.to_thread

    async def counted(function: Callable[..., Any]) -> Any:
        threads.append(function)
        return await to_thread(function)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        ends = [room.topic(str(number), prev=[root]) for number in range(3)]
        await room.deliver(*ends)
        assert await room.current() == room.before([event.event_id for event in ends])
        assert threads


async def test_people_do_not_wait_behind_a_flood_of_peers(world: World) -> None:
    async with world.writer():
        room = await remote_room(world)
        root = room.tip
        flood = [await room.put(*[room.message(f"{n}/{m}", prev=[root]) for m in range(20)]) for n in range(30)]
        naming = [asyncio.create_task(room.name(inbox_ids)) for inbox_ids in flood]
        await asyncio.sleep(0)  # all of it lies in the topic before
        for task in naming:
            assert not task.done()
        sent = await world.accepted(room.room_id, message("of our own"))
        await asyncio.gather(*naming)
        records = [record for records in world.published_records().values() for record in records]
        behind = [record for record in records if record.position > sent.position]
        assert len(behind) > 300  # of 600
        assert await room.inbox_states() == []
    await check_read_back(world)

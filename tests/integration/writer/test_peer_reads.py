"""What other servers read of a room: events, states, history, and what of it they may see."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson
import pytest
from peer_world import PeerWorld, know_keys, path_of, peer_world, resigned, room_path
from remote_room import DORA, THERE, RemoteRoom, remote_room
from test_behind_gaps import deliver_behind_gap
from writer_world import ALICE, World

from matrixcore.events import parse_event
from matrixcore.identifiers import EventId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from tessera.commands import Append, NewEvent
from tessera.storage.database import Database

OTHER = ServerName("other.org")
OTHER_KEY = SigningKey("1", b"\x05" * 32)


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    await know_keys(accounts, OTHER, OTHER_KEY)
    async with world.writer(), peer_world(world, accounts) as made:
        yield made


@pytest.fixture(params=["1", "11", "12"])
async def any_room(request: pytest.FixtureRequest, peer: PeerWorld) -> RemoteRoom:
    return await remote_room(peer.world, request.param)


@pytest.fixture
async def room(peer: PeerWorld) -> RemoteRoom:
    return await remote_room(peer.world)


def ids_of(room: RemoteRoom, pdus: Sequence[Mapping[str, Any]]) -> list[EventId]:
    return [parse_event(orjson.dumps(pdu), ROOM_VERSIONS[room.version]).event_id for pdu in pdus]


async def ok(peer: PeerWorld, path: str) -> Any:
    answer = await peer.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def say(peer: PeerWorld, room: RemoteRoom, event: NewEvent) -> EventId:
    """An event of Alice's."""
    outcome = await peer.world.accepted(room.room_id, Append(event), ALICE)
    await room.take_in(outcome.event_ids[0])
    return outcome.event_ids[0]


def text(body: str) -> NewEvent:
    return NewEvent("m.room.message", None, {"msgtype": "m.text", "body": body})


def visibility(value: str) -> NewEvent:
    return NewEvent("m.room.history_visibility", "", {"history_visibility": value})


async def test_an_event(peer: PeerWorld, any_room: RemoteRoom) -> None:
    event_id = await say(peer, any_room, text("hello"))
    answer = await ok(peer, path_of("event/{}", event_id))
    assert answer["origin"] == "here.org"
    assert ids_of(any_room, answer["pdus"]) == [event_id]
    assert answer["pdus"][0]["content"]["body"] == "hello"


async def test_states(peer: PeerWorld, any_room: RemoteRoom) -> None:
    event = any_room.topic("one")
    await any_room.deliver(event)
    later = any_room.topic("two")
    await any_room.deliver(later)
    path = room_path("state_ids", any_room.room_id) + path_of("?event_id={}", later.event_id)
    ids = await ok(peer, path)
    before = any_room.before(later.prev_events)
    assert sorted(ids["pdu_ids"]) == sorted(before.values())
    cited = {e for one in [*ids["pdu_ids"], *ids["auth_chain_ids"]] for e in any_room.events[one].auth_events}
    assert set(ids["auth_chain_ids"]) == cited
    whole = await ok(peer, path.replace("state_ids", "state"))
    assert sorted(ids_of(any_room, whole["pdus"])) == sorted(before.values())
    assert sorted(ids_of(any_room, whole["auth_chain"])) == sorted(cited)


async def test_the_state_where_the_room_forked(peer: PeerWorld, any_room: RemoteRoom) -> None:
    tip = any_room.tip
    left, right = any_room.topic("left", prev=[tip]), any_room.topic("right", prev=[tip])
    above = any_room.message("above left", prev=[left.event_id])
    await any_room.deliver(left, right, above)
    path = room_path("state_ids", any_room.room_id) + path_of("?event_id={}", above.event_id)
    assert sorted((await ok(peer, path))["pdu_ids"]) == sorted(any_room.before([left.event_id]).values())


async def test_an_auth_chain(peer: PeerWorld, any_room: RemoteRoom) -> None:
    event = any_room.message("x")
    await any_room.deliver(event)
    answer = await ok(peer, path_of("event_auth/{}/{}", any_room.room_id, event.event_id))
    chain: set[str] = set()
    queue = [event.event_id]
    while queue:
        fresh = set(any_room.events[queue.pop()].auth_events) - chain
        chain |= fresh
        queue += [EventId(one) for one in fresh]
    assert set(ids_of(any_room, answer["auth_chain"])) == chain


async def test_backfill_goes_back_from_the_events(peer: PeerWorld, any_room: RemoteRoom) -> None:
    events = [any_room.message(str(number)) for number in range(30)]
    await any_room.deliver(*events)
    path = room_path("backfill", any_room.room_id) + path_of("?limit=10&v={}", events[20].event_id)
    assert ids_of(any_room, (await ok(peer, path))["pdus"]) == [event.event_id for event in events[20:10:-1]]
    whole = await ok(peer, path.replace("limit=10", "limit=100000"))
    assert len(whole["pdus"]) == 100 if len(any_room.events) > 100 else len(any_room.events) - 9


async def test_backfill_follows_all_branches(peer: PeerWorld, room: RemoteRoom) -> None:
    tip = room.tip
    left, right = room.message("left", prev=[tip]), room.message("right", prev=[tip])
    above = room.message("above", prev=[left.event_id, right.event_id])
    aside = room.message("aside", prev=[tip])
    await room.deliver(left, right, above, aside)
    path = room_path("backfill", room.room_id) + path_of("?limit=4&v={}", above.event_id)
    found = ids_of(room, (await ok(peer, path))["pdus"])
    assert found[0] == above.event_id
    assert set(found) == {above.event_id, left.event_id, right.event_id, tip}


async def test_missing_events_are_those_between(peer: PeerWorld, any_room: RemoteRoom) -> None:
    events = [any_room.message(str(number)) for number in range(30)]
    await any_room.deliver(*events)
    body = {"latest_events": [events[12].event_id], "earliest_events": [events[3].event_id], "limit": 100}
    answer = await peer.request("POST", room_path("get_missing_events", any_room.room_id), body)
    assert ids_of(any_room, answer.json()["events"]) == [event.event_id for event in events[4:12]]
    body = {"latest_events": [events[29].event_id], "earliest_events": []}
    answer = await peer.request("POST", room_path("get_missing_events", any_room.room_id), body)
    assert ids_of(any_room, answer.json()["events"]) == [event.event_id for event in events[19:29]]
    body = {**body, "limit": 20, "min_depth": events[27].depth}
    answer = await peer.request("POST", room_path("get_missing_events", any_room.room_id), body)
    assert ids_of(any_room, answer.json()["events"]) == [event.event_id for event in events[27:29]]


@pytest.mark.parametrize(
    "body",
    [{}, {"latest_events": "x", "earliest_events": []}, {"latest_events": [3], "earliest_events": []},
     {"latest_events": ["$x"], "earliest_events": [], "limit": "9"},
     {"latest_events": ["$x"] * 1_000, "earliest_events": []}],
)  # fmt: skip
async def test_odd_questions_about_history(peer: PeerWorld, room: RemoteRoom, body: dict[str, Any]) -> None:
    answer = await peer.request("POST", room_path("get_missing_events", room.room_id), body)
    assert answer.status_code == 400


async def test_an_event_by_its_time(peer: PeerWorld, room: RemoteRoom) -> None:
    events = [room.message(str(ts), at_ms=1_800_000_000_000 + ts) for ts in (10, 20, 30)]
    await room.deliver(*events)
    path = room_path("timestamp_to_event", room.room_id)
    answer = await ok(peer, f"{path}?ts=1800000000015&dir=f")
    assert answer == {"event_id": events[1].event_id, "origin_server_ts": 1_800_000_000_020}
    assert (await ok(peer, f"{path}?ts=1800000000015&dir=b"))["event_id"] == events[0].event_id
    assert (await peer.get(f"{path}?ts=1800000000031&dir=f")).status_code == 404


async def test_only_servers_in_the_room_read(peer: PeerWorld, room: RemoteRoom) -> None:
    event_id = room.tip
    query = path_of("?event_id={}", event_id)
    paths = [
        path_of("event/{}", event_id),
        room_path("state", room.room_id) + query,
        room_path("state_ids", room.room_id) + query,
        room_path("backfill", room.room_id) + path_of("?limit=1&v={}", event_id),
        path_of("event_auth/{}/{}", room.room_id, event_id),
        room_path("timestamp_to_event", room.room_id) + "?ts=1&dir=f",
    ]
    for path in paths:
        assert (await peer.get(path)).status_code == 200
        assert (await peer.get(path, origin=OTHER, key=OTHER_KEY)).status_code == 403
    body = {"latest_events": [event_id], "earliest_events": []}
    missing = room_path("get_missing_events", room.room_id)
    assert (await peer.request("POST", missing, body, origin=OTHER, key=OTHER_KEY)).status_code == 403
    await say(peer, room, NewEvent("m.room.server_acl", "", {"allow": ["*"], "deny": [THERE]}))
    assert [(await peer.get(path)).status_code for path in paths] == [403] * len(paths)


async def test_what_is_not_part_of_the_history_is_not_there(peer: PeerWorld, room: RemoteRoom) -> None:
    outlier = room.topic("outlier")
    rejected = room.make("m.room.power_levels", {"users": {DORA: 100}}, state_key="")
    await room.deliver(outlier, outlier=True)
    bad = room.make(
        "m.room.name", {"name": "x"}, state_key="", sender=DORA, prev=[next(iter(await room.extremities()))]
    )
    await room.deliver(bad)
    assert (await room.row(bad))["rejected"]
    for event_id in (outlier.event_id, bad.event_id, rejected.event_id, EventId("$nothing")):
        assert (await peer.get(path_of("event/{}", event_id))).status_code == 404
        path = room_path("state_ids", room.room_id) + path_of("?event_id={}", event_id)
        assert (await peer.get(path)).status_code == 404
        assert (await peer.get(path_of("event_auth/{}/{}", room.room_id, event_id))).status_code == 404


async def test_what_a_server_may_not_see_it_gets_redacted(peer: PeerWorld, room: RemoteRoom) -> None:
    """Before its first user came in, with visibility `joined`."""
    await say(peer, room, visibility("joined"))
    before = await say(peer, room, text("before"))
    member = UserId(f"@m:{OTHER}")
    join = resigned(room.join(member), OTHER, OTHER_KEY)
    await room.deliver(join)
    after = await say(peer, room, text("after"))
    for origin, key, seen in ((THERE, None, "before"), (OTHER, OTHER_KEY, None)):
        more = {} if key is None else {"origin": origin, "key": key}
        answer = (await peer.get(path_of("event/{}", before), **more)).json()
        assert answer["pdus"][0]["content"].get("body") == seen
        assert ids_of(room, answer["pdus"]) == [before]
        answer = (await peer.get(path_of("event/{}", after), **more)).json()
        assert answer["pdus"][0]["content"]["body"] == "after"
    path = room_path("backfill", room.room_id) + path_of("?limit=3&v={}", after)
    pdus = (await peer.get(path, origin=OTHER, key=OTHER_KEY)).json()["pdus"]
    assert [pdu["content"].get("body") for pdu in pdus if pdu["type"] == "m.room.message"] == ["after", None]


async def test_shared_history_is_open_to_servers_that_came_later(peer: PeerWorld, room: RemoteRoom) -> None:
    before = await say(peer, room, text("before"))
    await room.deliver(resigned(room.join(UserId(f"@m:{OTHER}")), OTHER, OTHER_KEY))
    answer = await peer.get(path_of("event/{}", before), origin=OTHER, key=OTHER_KEY)
    assert answer.json()["pdus"][0]["content"]["body"] == "before"


async def test_history_behind_a_gap_ends_there(peer: PeerWorld, room: RemoteRoom) -> None:
    for number in range(5):
        room.message(str(number))
    event = room.message("seen")
    await deliver_behind_gap(room, event)
    path = room_path("backfill", room.room_id) + path_of("?limit=10&v={}", event.event_id)
    assert ids_of(room, (await ok(peer, path))["pdus"]) == [event.event_id]
    path = room_path("state_ids", room.room_id) + path_of("?event_id={}", event.event_id)
    assert sorted((await ok(peer, path))["pdu_ids"]) == sorted(room.before(event.prev_events).values())


async def test_a_stretch_of_a_line_is_read_in_few_queries(peer: PeerWorld, room: RemoteRoom) -> None:
    events = [room.message(str(number)) for number in range(100)]
    await room.deliver(*events)
    path = room_path("backfill", room.room_id) + path_of("?limit=100&v={}", events[-1].event_id)
    async with peer.world.shards.of_room(room.room_id).counting() as count:
        assert len((await ok(peer, path))["pdus"]) == 100
    assert count.statements <= 12

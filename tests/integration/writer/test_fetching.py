"""What PDUs wait for is fetched: history, states above a gap, auth events, from whoever has them."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from peer_world import PeerWorld, know_keys, peer_world, resigned
from remote_room import DORA, THERE, THERE_KEY, RemoteRoom, remote_room
from resident_server import Resident
from writer_world import ALICE, World

from matrixcore.event_hashes import content_hash
from matrixcore.event_signing import sign_event
from matrixcore.events import parse_event
from matrixcore.identifiers import RoomId, ServerName, UserId
from matrixcore.signing import SigningKey, encode_base64
from tessera.commands import Append, NewEvent
from tessera.storage import fetches
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.shards import RoomShards

OTHER = ServerName("other.org")


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    async with world.writer(), peer_world(world, accounts) as made:
        yield made


@pytest.fixture(params=["1", "11", "12"])
async def room(request: pytest.FixtureRequest, peer: PeerWorld) -> RemoteRoom:
    return await remote_room(peer.world, request.param)


async def test_a_gap_is_filled_with_what_was_missed(peer: PeerWorld, room: RemoteRoom) -> None:
    Resident(peer, room)
    missed = [room.join(DORA), room.topic("missed", sender=DORA), *(room.message(str(n)) for n in range(10))]
    event = room.message("seen", sender=DORA)
    assert await peer.send(event) == {event.event_id: {}}
    await peer.settled(room, *missed, event)
    assert await room.extremities() == {event.event_id}
    assert await room.current() == room.after[event.event_id]
    assert [asked[1].split("/")[4] for asked in peer.peers.asked] == ["get_missing_events"]


async def test_a_long_gap_is_chased_in_several_answers(peer: PeerWorld, room: RemoteRoom) -> None:
    Resident(peer, room, history=5)
    missed = [room.message(str(number)) for number in range(18)]
    event = room.topic("seen")
    await peer.send(event)
    await peer.settled(room, *missed, event)
    assert await room.extremities() == {event.event_id}


async def test_above_a_gap_that_is_too_long_the_state_is_told(peer: PeerWorld, room: RemoteRoom) -> None:
    Resident(peer, room, history=2)
    old = room.tip
    missed = [room.join(DORA), room.topic("missed", sender=DORA), *(room.message(str(n)) for n in range(30))]
    event = room.message("seen", sender=DORA)
    await peer.send(event)
    await peer.settled(room, event, missed[0], missed[-1])
    assert (await room.row(missed[0]))["outlier"]
    assert (await room.row(missed[5])) is None
    assert (await room.row(missed[-1]))["anchor"] is not None
    assert await room.extremities() == {old, event.event_id}
    assert await room.current() == room.before([old, event.event_id])


async def test_a_server_that_gives_no_history_may_still_tell_the_state(peer: PeerWorld, room: RemoteRoom) -> None:
    resident = Resident(peer, room)
    resident.history = 0
    room.join(DORA)
    event = room.message("seen", sender=DORA)
    await peer.send(event)
    await peer.settled(room, event)
    assert (await room.row(event))["soft_failed"] is None


async def test_auth_events_that_are_no_ancestors_are_fetched_as_outliers(peer: PeerWorld, room: RemoteRoom) -> None:
    """An event may cite what its prev events do not lead to, as far as we can see."""
    Resident(peer, room)
    tip = room.tip
    aside = room.join(DORA)
    cited = [*(room.after[aside.event_id][key] for key in (("m.room.create", ""), ("m.room.power_levels", ""))),
             room.after[aside.event_id]["m.room.join_rules", ""], aside.event_id]  # fmt: skip
    if room.version == "12":
        cited = cited[1:]
    content = {"membership": "join", "displayname": "d"}
    event = room.make("m.room.member", content, sender=DORA, state_key=DORA, prev=[tip], auth=cited)
    await peer.send(event)
    await peer.settled(room, event, aside)
    assert (await room.row(aside))["outlier"]


async def test_others_are_asked_when_the_origin_is_dead(peer: PeerWorld, room: RemoteRoom) -> None:

    key = SigningKey("1", b"\x05" * 32)
    await know_keys(peer.deps.accounts, OTHER, key)
    member = UserId(f"@m:{OTHER}")

    join = resigned(room.join(member), OTHER, key)
    room.events[join.event_id] = join
    await room.deliver(join)
    Resident(peer, room, OTHER)
    missed = room.message("missed")
    event = room.message("seen")
    await peer.send(event)
    await peer.settled(room, missed, event)
    assert {asked[0] for asked in peer.peers.asked} == {THERE, OTHER}


async def test_a_state_without_the_rooms_creation_is_not_believed(peer: PeerWorld, room: RemoteRoom) -> None:
    resident = Resident(peer, room)
    resident.history = 0
    create = room.after[room.tip]["m.room.create", ""]

    def lie(query: Mapping[str, Any]) -> dict[str, Any]:
        ids = resident.state_ids(query)
        return {**ids, "pdu_ids": [one for one in ids["pdu_ids"] if one != create]}

    peer.peers.answers[THERE, "state_ids/"] = lie
    room.message("missed")
    event = room.message("seen")
    await peer.send(event)
    database = peer.world.shards.of_room(room.room_id)
    query = "SELECT count(*) FROM rooms.fetches WHERE room_id = $1 AND failures = 1 AND leased_until < now()"

    async def has_failed() -> bool:
        return bool(await database.fetchval(query, room.room_id))

    await peer.until(has_failed)
    assert await room.inbox_states() == ["parked"]
    # The room goes on for its own people, and nobody hammers the peer.
    await peer.world.accepted(room.room_id, Append(NewEvent("m.room.message", None, {"body": "x"})), ALICE)
    count = len(peer.peers.asked)
    assert not await peer.intake.fetcher.fetch_room(room.room_id)
    assert len(peer.peers.asked) == count


async def test_a_room_is_kept_while_it_is_fetched_for_and_let_go_by_the_dead(
    peer: PeerWorld, room: RemoteRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = Resident(peer, room)
    database, fetcher = peer.world.shards.of_room(room.room_id), peer.intake.fetcher
    lasts = "SELECT leased_until > now() + interval '1 second' FROM rooms.fetches WHERE room_id = $1"
    leases: list[bool] = []

    def lost(_shards: RoomShards, _rooms: object) -> dict[str, list[RoomId]]:
        raise DatabaseUnavailable("the placement is not known")

    async def slow(body: Mapping[str, Any]) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(RoomShards, "group_rooms", lost)
            await fetcher.renew_once()  # and the process goes on
        await database.execute("UPDATE rooms.fetches SET leased_until = now() WHERE room_id = $1", room.room_id)
        await fetcher.renew_once()
        leases.append(await database.fetchval(lasts, room.room_id))
        return resident.missing(body)

    peer.peers.answers[THERE, "get_missing_events/"] = slow
    missed, event = room.message("missed"), room.message("seen")
    async with database.transaction() as tx:
        assert await fetches.claim(tx, room.room_id, "a process that was killed", 60) == 0
    await peer.send(event)

    async def is_parked() -> bool:
        return await room.inbox_states() == ["parked"]

    await peer.until(is_parked)
    await fetcher.renew_once()
    assert not await fetcher.fetch_room(room.room_id)
    assert not leases
    await database.execute("UPDATE rooms.fetches SET leased_until = now() WHERE room_id = $1", room.room_id)
    fetcher.wake(room.room_id)
    await peer.settled(room, missed, event)
    assert leases == [True]


async def test_history_that_is_wrongly_signed_is_no_history(peer: PeerWorld, room: RemoteRoom) -> None:
    resident = Resident(peer, room)

    def unsigned(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"events": [{**pdu, "signatures": {}} for pdu in resident.missing(body)["events"]]}

    peer.peers.answers[THERE, "get_missing_events/"] = unsigned
    missed = room.message("missed")
    event = room.message("seen")
    await peer.send(event)
    await peer.settled(room, event)
    assert await room.row(missed) is None
    assert (await room.row(event))["anchor"] is not None


async def test_endless_history_ends_in_a_told_state(peer: PeerWorld, room: RemoteRoom) -> None:
    """However long the chain is that a peer makes up, so much is fetched and no more."""
    Resident(peer, room, history=3)
    for number in range(200):
        room.message(str(number))
    event = room.message("seen")
    await peer.send(event)
    await peer.settled(room, event)
    names = [asked[1].split("/")[4] for asked in peer.peers.asked]
    assert names.count("get_missing_events") <= 10
    assert names.count("state_ids") == 1


async def test_auth_events_that_cite_each_other_hold_up_only_themselves(peer: PeerWorld) -> None:
    """In version 1, whose event IDs prove nothing."""
    room = await remote_room(peer.world, "1")
    Resident(peer, room)
    tip = room.tip
    first = room.topic("first")
    second = room.topic("second", prev=[tip], auth=[*room.events[tip].auth_events, first.event_id])
    rules = first.rules
    circular = {**first.fields, "auth_events": [*first.fields["auth_events"], [second.event_id, {}]]}
    circular["hashes"] = {"sha256": encode_base64(content_hash(circular, rules))}
    circular["signatures"] = {}
    room.events[first.event_id] = sign_event(parse_event(circular, rules), THERE, THERE_KEY)
    event = room.message("x", prev=[tip], auth=[*room.events[tip].auth_events, second.event_id])
    room.tip = tip
    fine = room.message("fine")
    await peer.send(event, fine)

    async def is_stuck() -> bool:
        return await room.row(fine) is not None and await room.inbox_states() == ["parked"] * 3

    await peer.until(is_stuck)
    assert not await peer.intake.fetcher.fetch_room(room.room_id)
    await peer.world.accepted(room.room_id, Append(NewEvent("m.room.message", None, {"body": "x"})), ALICE)
    assert await room.row(event) is None

"""Attacks by what transactions hold: forged, endless, circular and unwanted PDUs, and floods of EDUs."""

import asyncio
from collections import Counter
from typing import Any
from urllib.parse import quote

from matrixcore.event_building import build_event
from matrixcore.events import MAX_PDU_BYTES, Event
from matrixcore.identifiers import EventId, RoomId, UserId, server_of
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from tests.hostile.hostile_peer import CLOCK, V1, V2, answer_with, encode_base64_signature
from tests.hostile.stage import Stage

MEGABYTE = 1 << 20


async def wrong_signatures(stage: Stage) -> str:
    """Events signed by nobody, by another key of the same name, and with a signature of something else."""
    room_id = await stage.new_room()
    evil = stage.evil
    other_key = evil.event(room_id, "another key", signing_key=SigningKey("evil", b"\x01" * 32))
    unsigned = {**evil.event(room_id, "no signature").fields, "signatures": {}}
    swapped = {**evil.event(room_id, "swapped").fields, "signatures": evil.event(room_id).fields["signatures"]}
    results = await evil.results(other_key, unsigned, swapped)
    assert len(results) == 3, results
    assert all("not signed" in result["error"] for result in results.values()), results
    assert await stage.content_of(room_id, other_key.event_id) is None
    await stage.goes_on(room_id)
    return "3 of 3 refused by name: not signed with a known key"


async def wrong_hashes(stage: Stage) -> str:
    """Events whose content was exchanged after they were signed."""
    room_id = await stage.new_room()
    event = stage.evil.event(room_id, "as it was signed")
    changed = {**event.fields, "content": {"msgtype": "m.text", "body": "as it was not"}}
    assert await stage.evil.results(changed) == {event.event_id: {}}
    await stage.arrived(room_id, event.event_id)
    assert await stage.content_of(room_id, event.event_id) == {}
    await stage.goes_on(room_id)
    return "taken in its redacted form: nobody sees the exchanged content"


async def events_of_others(stage: Stage) -> str:
    """Events of users of other servers, signed by the hostile one alone."""
    room_id = await stage.new_room()
    evil = stage.evil
    senders = [stage.good.user, UserId(stage.alice.user_id)]
    forged = [evil.event(room_id, f"as {sender}", sender=sender) for sender in senders]
    for sender in senders:  # as if those had signed it
        forged.append(evil.event(room_id, "in their name", sender=sender, server_name=server_of(sender)))
    results = await evil.results(*forged)
    assert all("error" in result for result in results.values()), results
    assert len(results) == len(forged)
    for event in forged:
        assert await stage.content_of(room_id, event.event_id) is None
    await stage.goes_on(room_id)
    return f"{len(forged)} of {len(forged)} refused by name"


async def deep_events(stage: Stage) -> str:
    """Events whose depth is 2^53, which is no number of canonical JSON, and 2^53 - 1, above which there is none."""
    room_id = await stage.new_room()
    evil = stage.evil
    fields: dict[str, Any] = {**evil.event(room_id, "too deep").fields, "depth": 2**53}
    fields["signatures"] = {evil.name: {evil.key.key_id: encode_base64_signature(fields, evil.key)}}
    status, answer = await evil.put([fields])
    assert status == 400 or all("error" in result for result in answer["pdus"].values()), (status, answer)
    deepest = evil.event(room_id, "as deep as can be", depth=2**53 - 1)
    evil.rooms[room_id].tip = deepest
    assert await evil.results(deepest) == {deepest.event_id: {}}
    await stage.arrived(room_id, deepest.event_id)
    await stage.alice.send(room_id, "even deeper")
    on_it = evil.say(room_id)
    assert await evil.results(on_it) == {on_it.event_id: {}}
    await stage.arrived(room_id, on_it.event_id)
    await stage.goes_on(room_id)
    return "2^53 refused; 2^53 - 1 taken, and what lies on it: depth orders nothing here"


async def circles(stage: Stage) -> str:
    """Auth events that cite each other, in a version whose event IDs are chosen; prev events likewise."""
    room_id = await stage.new_room("1")
    evil = stage.evil
    one, other = evil.new_id(), evil.new_id()
    room = evil.rooms[room_id]
    outliers = {
        me: evil.event(
            room_id,
            event_id=me,
            event_type="m.room.member",
            state_key=evil.user,
            content={"membership": "join"},
            auth_events=[room.auth[0], its],
        )
        for me, its in ((one, other), (other, one))
    }
    citing = evil.event(room_id, "on a circle", auth_events=[*room.auth[:-1], one])
    first, second = evil.new_id(), evil.new_id()
    ring = [
        evil.event(room_id, "ring", event_id=me, prev_events=[its]) for me, its in ((first, second), (second, first))
    ]
    _serve_events(stage, {**outliers, **{event.event_id: event for event in ring}})
    assert await evil.results(citing, *ring) == {event.event_id: {} for event in (citing, *ring)}
    took = await stage.goes_on(room_id)
    assert await stage.content_of(room_id, citing.event_id) is None
    assert await stage.content_of(room_id, first) is None
    evil.answers.clear()
    return f"3 events wait for each other for ever, nobody else does ({took:.1f} s for two sends beside them)"


def _serve_events(stage: Stage, events: dict[EventId, Event]) -> None:
    """Answer for these events, one by one and as auth chains and history."""
    fields = [dict(event.fields) for event in events.values()]
    for event_id, event in events.items():
        answer = {"origin": stage.evil.name, "origin_server_ts": 1, "pdus": [dict(event.fields)]}
        stage.evil.answers[f"{V1}event/{event_id}"] = answer_with(answer)
    stage.evil.answers[f"{V1}event_auth/"] = answer_with({"auth_chain": fields})
    stage.evil.answers[f"{V1}get_missing_events/"] = answer_with({"events": fields})


async def missing_auth_chains(stage: Stage) -> str:
    """Events that rest on auth events and ancestors that nobody has."""
    room_id = await stage.new_room()
    evil = stage.evil
    room = evil.rooms[room_id]
    nobody_has = [EventId("$" + f"{number:043d}") for number in range(10)]
    citing = [evil.event(room_id, "no auth", auth_events=[*room.auth, one]) for one in nobody_has[:5]]
    above = [evil.event(room_id, "no past", prev_events=[one]) for one in nobody_has[5:]]
    results = await evil.results(*citing, *above)
    assert all(result == {} for result in results.values()), results
    took = await stage.goes_on(room_id)
    for event in (*citing, *above):
        assert await stage.content_of(room_id, event.event_id) is None
    return f"10 events wait, and are in nobody's way ({took:.1f} s for two sends beside them)"


async def many_extremities(stage: Stage) -> str:
    """Events that all lie on the same one, each a forward extremity."""
    room_id = await stage.new_room()
    evil, many = stage.evil, stage.count(1_000, 150)
    root = [evil.rooms[room_id].join.event_id]
    events = [evil.event(room_id, f"{number}", prev_events=root) for number in range(many)]
    for start in range(0, many, 50):
        results = await evil.results(*events[start : start + 50])
        assert all(result == {} for result in results.values()), results
    await stage.arrived(room_id, events[-1].event_id)
    took = await stage.goes_on(room_id)
    return f"{many} taken; the next local event and a good peer's took {took:.1f} s, each of ours merges 20 of them"


async def large_pdus(stage: Stage) -> str:
    """PDUs of ten megabytes, of nine, which a body may have, and of a little too much; then several bodies at once."""
    room_id = await stage.new_room()
    evil = stage.evil
    fields: dict[str, Any] = dict(evil.event(room_id).fields)
    huge, large, long = (
        {**fields, "content": {"msgtype": "m.text", "body": "x" * size}}
        for size in (10 * MEGABYTE, 9 * MEGABYTE, MAX_PDU_BYTES)
    )
    assert (await evil.put([huge]))[0] == 413
    for pdu in (large, long):
        (result,) = (await evil.results(pdu)).values()
        assert "65536" in result["error"], result
    many = stage.count(12, 3)
    answers = Counter([status for status, _ in await asyncio.gather(*(evil.put([large]) for _ in range(many)))])
    assert set(answers) <= {200, 400, 413, 429, 503}, answers
    await stage.goes_on(room_id)
    said = ", ".join(f"{count} x {status}" for status, count in sorted(answers.items()))
    return f"10 MB: 413; 9 MB and 65 KB: refused by name; {many} bodies of 9 MB at once: {said}"


async def repeated_transactions(stage: Stage) -> str:
    """One transaction again and again, at once, and its ID for another one."""
    room_id = await stage.new_room()
    evil, many = stage.evil, stage.count(40, 8)
    event, other = evil.event(room_id, "once"), evil.event(room_id, "under a used ID")
    answers = await asyncio.gather(*(evil.put([event], txn="same") for _ in range(many)))
    taken = [answer for status, answer in answers if status == 200]
    assert taken
    assert all(answer == {"pdus": {event.event_id: {}}} for answer in taken)
    assert {status for status, _ in answers} <= {200, 429}
    assert await evil.put([other], txn="same") == (200, {"pdus": {event.event_id: {}}})
    await stage.arrived(room_id, event.event_id)
    await stage.goes_on(room_id)
    path = f"/rooms/{quote(room_id)}/messages"
    chunk = (await stage.alice.get(path, dir="b", limit="100"))["chunk"]
    assert [one["event_id"] for one in chunk].count(event.event_id) == 1
    assert other.event_id not in {one["event_id"] for one in chunk}
    said = f"{len(taken)} of {many} answered as the first was, {many - len(taken)} with 429"
    return f"{said}; the event is there once"


async def unknown_rooms(stage: Stage) -> str:
    """PDUs of rooms in which the server has nobody; the ends of an invite, by a stranger and by whom it concerns."""
    room_id = await stage.new_room()
    evil, good = stage.evil, stage.good
    stray = {**evil.event(room_id).fields, "room_id": f"!other:{evil.name}"}
    for _ in range(stage.count(20, 2)):
        assert await evil.results(*[stray] * 50) == {}
    foreign = RoomId(f"!invites:{good.name}")
    invite = _membership(stage, foreign, good.user, "invite", [EventId("$" + "c" * 43)], good.key)
    path = f"{V2}invite/{quote(foreign)}/{quote(invite.event_id, safe='')}"
    body = {"event": dict(invite.fields), "room_version": "11", "invite_room_state": [_creation(good.user)]}
    status, answer = await good.request("PUT", path, body)
    assert status == 200, answer
    await stage.until(lambda: _is_invited(stage, foreign))
    # A stranger does not know the invite; whoever cites it does, and may be anybody of whom the room says so.
    unknown = _membership(stage, foreign, evil.user, "leave", [EventId("$" + "d" * 43)], evil.key)
    assert await evil.results(unknown) == {}
    await stage.goes_on(room_id)
    assert await _is_invited(stage, foreign)
    end = _membership(stage, foreign, good.user, "leave", [invite.event_id], good.key)
    assert await good.results(end) == {}
    await stage.until(lambda: _is_not_invited(stage, foreign))
    return "dropped; a stranger's end of an invite changes nothing, its sender's ends it"


def _membership(
    stage: Stage, room_id: RoomId, sender: UserId, membership: str, auth: list[EventId], key: SigningKey
) -> Event:
    """A member event about Alice, of a room that only its maker knows."""
    return build_event(
        rules=ROOM_VERSIONS["11"],
        room_id=room_id,
        sender=sender,
        event_type="m.room.member",
        state_key=stage.alice.user_id,
        content={"membership": membership},
        origin_server_ts=CLOCK.now_ms(),
        depth=5,
        prev_events=[EventId("$" + "p" * 43)],
        auth_events=auth,
        server_name=server_of(sender),
        signing_key=key,
    )


def _creation(creator: UserId) -> dict[str, Any]:
    """The stripped create event of a room of version 11."""
    return {"type": "m.room.create", "state_key": "", "sender": creator, "content": {"room_version": "11"}}


async def _is_invited(stage: Stage, room_id: RoomId) -> bool:
    return room_id in (await stage.alice.sync()).get("rooms", {}).get("invite", {})


async def _is_not_invited(stage: Stage, room_id: RoomId) -> bool:
    return not await _is_invited(stage, room_id)

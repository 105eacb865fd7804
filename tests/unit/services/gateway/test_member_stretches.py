"""Members as JSON that is made once: what depends on the reader stands where it belongs."""

from typing import Any

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.member_stretches import MemberStretch, make_stretch
from tessera.records import OrderKey
from tessera.room_visibility import MembershipHistory
from tessera.storage.room_reads.member_lists import MemberRow
from tessera.storage.room_reads.members import MembershipStep

ROOM = RoomId("!room:here.org")
READER = UserId("@reader:here.org")
STEPS = [MembershipStep(OrderKey(at), membership, None) for at, membership in ((3, "invite"), (5, "join"))]


def row(number: int, membership: str = "join", *, placed: bool = True, **content: Any) -> MemberRow:
    user_id = UserId(f"@user{number}:here.org")
    fields = {
        "type": "m.room.member",
        "state_key": user_id,
        "sender": user_id,
        "origin_server_ts": 1_000 + number,
        "content": {"membership": membership, **content},
        "signatures": {},
    }
    place = (number, 0) if placed else (None, None)
    pdu = orjson.dumps(fields)
    return MemberRow(user_id, membership, EventId(f"${number}"), *place, 1_000 + number, None, None, pdu, None, None)


def events_of(stretch: MemberStretch, now_ms: int = 2_000) -> dict[str, dict[str, Any]]:
    history = MembershipHistory(READER, STEPS)
    chunk = [event for group in stretch.groups for event in orjson.loads(b"[" + group.fill(history, now_ms) + b"]")]
    return {event["state_key"]: event for event in chunk}


async def made(*rows: MemberRow, version: str = "11") -> MemberStretch:
    return await make_stretch(rows, ROOM_VERSIONS[version], ROOM)


async def test_each_event_says_what_the_reader_was_then() -> None:
    events = events_of(await made(*map(row, range(2, 7)), row(7, placed=False)))
    unsigned = [event["unsigned"] for event in events.values()]
    assert [one.get("membership") for one in unsigned] == ["leave", "invite", "invite", "join", "join", None]
    assert [one["age"] for one in unsigned] == [998, 997, 996, 995, 994, 993]
    late = events_of(await made(row(8), row(9)), now_ms=3_000)
    assert [event["unsigned"] for event in late.values()] == [
        {"age": 1_992, "membership": "join"},
        {"age": 1_991, "membership": "join"},
    ]


async def test_an_event_is_whole_and_as_it_was_sent() -> None:
    for version in ("5", "11"):
        content = {"displayname": '100% "%d" %b %%', "avatar_url": "mxc://here.org/%s"}
        stretch = await made(row(6, **content), row(7, "leave", reason="5%"), version=version)
        events = events_of(stretch)
        assert events["@user6:here.org"] == {
            "type": "m.room.member",
            "event_id": "$6",
            "room_id": ROOM,
            "sender": "@user6:here.org",
            "state_key": "@user6:here.org",
            "origin_server_ts": 1_006,
            "content": {"membership": "join", **content},
            "unsigned": {"age": 994, "membership": "join"},
        }
        assert events["@user7:here.org"]["content"]["reason"] == "5%"
        profile = {"display_name": content["displayname"], "avatar_url": content["avatar_url"]}
        assert orjson.loads(b"{" + stretch.joined + b"}") == {"@user6:here.org": profile}


async def test_neighbours_stand_beside_what_depends_on_the_reader() -> None:
    pdu = row(6).pdu
    event = row(6)._replace(replaces_state=EventId("$old"), previous_pdu=row(6, "invite").pdu)
    gone = row(7)._replace(redacted_by=EventId("$by"), redaction_pdu=pdu)
    events = events_of(await made(event, gone))
    assert events["@user6:here.org"]["unsigned"] == {
        "replaces_state": "$old",
        "prev_content": {"membership": "invite"},
        "age": 994,
        "membership": "join",
    }
    assert events["@user7:here.org"]["unsigned"]["redacted_because"]["event_id"] == "$by"


async def test_profiles_leave_out_what_is_no_text() -> None:
    stretch = await made(row(6, displayname=None, avatar_url=7), row(7, "ban"))
    assert orjson.loads(b"{" + stretch.joined + b"}") == {"@user6:here.org": {}}
    assert (await made()).groups == ()

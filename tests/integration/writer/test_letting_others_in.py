"""Users of other servers come into our rooms and go. Spec: S-S API §Joining Rooms, §Knocking, §Leaving Rooms."""

from typing import Any

import pytest
from foreign_server import ForeignServer, joiner_of
from letting_in import Asking, finished, letting_in
from writer_world import ALICE, KEY, NOW_MS, SERVER, World

from matrixcore.event_building import build_event
from matrixcore.event_signing import add_signature
from matrixcore.events import parse_event
from matrixcore.identifiers import RoomId, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.room_changes import Session
from services.gateway.rooms_elsewhere import RoomsElsewhere
from tessera.commands import Append, CreateRoom, NewEvent
from tessera.http.errors import Forbidden
from tessera.records import RecordKind
from tests.fixtures.foreign_room import FAR, FAR_KEY, FAY, ForeignRoom

VERSIONS = ["1", "2", "6", "10", "11", "12"]
GUS = UserId(f"@gus:{FAR}")


async def set_state(world: World, room_id: RoomId, event_type: str, content: dict[str, Any], key: str = "") -> None:
    await world.accepted(room_id, Append(NewEvent(event_type, key, content)))


async def join(asking: Asking, room_id: str, user_id: str, version: str, **query: str) -> dict[str, Any]:
    """The answer to send_join."""
    status, template = await asking.template("join", room_id, user_id, version)
    assert status == 200, template
    event = finished(template)
    query_text = "".join(f"?{name}={value}" for name, value in query.items())
    path = f"/v2/send_join/{room_id}/{event.event_id}{query_text}"
    status, answer = await asking.ask("PUT", path, dict(event.fields))
    assert status == 200, answer
    again = await asking.ask("PUT", path, dict(event.fields))
    assert again == (status, answer)  # whoever got no answer asks again
    return dict(answer)


def ids_of(events: list[dict[str, Any]], version: str) -> set[str]:
    return {parse_event(event, ROOM_VERSIONS[version]).event_id for event in events}


@pytest.mark.parametrize("version", VERSIONS)
async def test_join_and_leave(any_world: World, version: str) -> None:
    world = any_world
    async with world.writer(), letting_in(world) as asking:
        room_id = await world.new_room(version)
        answer = await join(asking, room_id, FAY, version)
        assert {event["type"] for event in answer["state"]} == {
            "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules",
        }  # fmt: skip
        assert ids_of(answer["auth_chain"], version) <= ids_of(answer["state"], version)
        assert (answer["members_omitted"], answer["event"]["sender"]) == (False, FAY)
        records = [r for rs in world.published_records().values() for r in rs if r.kind is RecordKind.EVENT]
        assert (records[-1].event.state_key, records[-1].event.forwarded) == (FAY, True)
        # The state of the next one has her, and a second server's users learn of it as before the join.
        second = await join(asking, room_id, GUS, version)
        assert FAY in {event.get("state_key") for event in second["state"]}
        assert GUS not in {event.get("state_key") for event in second["state"]}
        _, template = await asking.template("leave", room_id, FAY)
        leave = finished(template)
        path = f"/v2/send_leave/{room_id}/{leave.event_id}"
        assert await asking.ask("PUT", path, dict(leave.fields)) == (200, {})
        assert (await asking.template("leave", room_id, FAY))[0] == 403


async def test_members_are_omitted_on_request(world: World) -> None:
    async with world.writer(), letting_in(world) as asking:
        room_id = await world.new_room()
        await join(asking, room_id, FAY, "11")
        await set_state(world, room_id, "m.room.name", {"name": "Named"})
        answer = await join(asking, room_id, GUS, "11", omit_members="true")
        assert answer["members_omitted"] is True
        assert answer["servers_in_room"] == [SERVER]
        assert "m.room.member" not in {event["type"] for event in answer["state"]}
        assert not ids_of(answer["auth_chain"], "11") & ids_of(answer["state"], "11")
        # What lets the others in is still there, in the auth chain.
        assert ALICE in {event.get("state_key") for event in answer["auth_chain"]}


async def test_what_is_refused(world: World) -> None:
    async with world.writer(), letting_in(world) as asking:
        room_id = await world.new_room("11")
        assert (await asking.template("join", room_id, FAY, "10"))[1]["room_version"] == "11"
        assert (await asking.template("join", room_id, FAY, "10"))[1]["errcode"] == "M_INCOMPATIBLE_ROOM_VERSION"
        assert (await asking.template("join", "!none:here.org", FAY))[0] == 404
        other = await asking.ask("GET", f"/v1/make_join/{room_id}/{FAY}?ver=11", origin="third.example")
        assert (other[0], other[1]["errcode"]) == (403, "M_FORBIDDEN")
        _, template = await asking.template("join", room_id, FAY)
        event = finished(template)
        path = f"/v2/send_join/{room_id}/{event.event_id}"
        forged = add_signature(event, FAR, FAR_KEY.key_id, "A" * 86)
        status, reply = await asking.ask("PUT", path, dict(forged.fields))
        assert (status, reply["errcode"]) == (403, "M_FORBIDDEN")
        assert (await asking.ask("PUT", path, dict(event.fields), origin="third.example"))[0] == 403
        assert (await asking.ask("PUT", path + "x", dict(event.fields)))[0] == 400
        assert (await asking.ask("PUT", f"/v2/send_leave/{room_id}/{event.event_id}", dict(event.fields)))[0] == 400
        await join(asking, room_id, FAY, "11")
        leave = finished((await asking.template("leave", room_id, FAY))[1])
        forged = add_signature(leave, FAR, FAR_KEY.key_id, "A" * 86)
        status, reply = await asking.ask("PUT", f"/v2/send_leave/{room_id}/{leave.event_id}", dict(forged.fields))
        assert (status, reply["errcode"]) == (403, "M_FORBIDDEN")
        await set_state(world, room_id, "m.room.server_acl", {"allow": ["*"], "deny": [FAR]})
        assert (await asking.template("join", room_id, FAY))[0] == 403
        assert (await asking.ask("PUT", path, dict(event.fields)))[0] == 403


async def test_a_room_that_does_not_federate(world: World) -> None:
    create = build_event(
        rules=ROOM_VERSIONS["11"],
        room_id=RoomId(f"!closed:{SERVER}"),
        sender=ALICE,
        event_type="m.room.create",
        state_key="",
        content={"room_version": "11", "m.federate": False},
        origin_server_ts=NOW_MS,
        depth=1,
        prev_events=(),
        auth_events=(),
        server_name=SERVER,
        signing_key=KEY,
    )
    events = (
        NewEvent("m.room.member", ALICE, {"membership": "join"}),
        NewEvent("m.room.join_rules", "", {"join_rule": "public"}),
    )
    async with world.writer(), letting_in(world) as asking:
        await world.accepted(create.room_id, CreateRoom("11", create.pdu, events))
        status, reply = await asking.template("join", create.room_id, FAY)
        assert (status, reply["errcode"]) == (403, "M_FORBIDDEN")
        joiner = joiner_of(world, ForeignServer(ForeignRoom()))
        elsewhere = RoomsElsewhere(joiner.changes, joiner.shaker, joiner)
        with pytest.raises(Forbidden):
            await elsewhere.invite(Session(ALICE), create.room_id, FAY, {"membership": "invite"})


async def test_knocks(world: World) -> None:
    async with world.writer(), letting_in(world) as asking:
        room_id = await world.new_room("11")
        assert (await asking.template("knock", room_id, FAY))[0] == 403  # it is public
        await set_state(world, room_id, "m.room.join_rules", {"join_rule": "knock"})
        _, template = await asking.template("knock", room_id, FAY)
        event = finished(template)
        status, answer = await asking.ask("PUT", f"/v1/send_knock/{room_id}/{event.event_id}", dict(event.fields))
        assert status == 200
        shown = {one["type"]: one for one in answer["knock_room_state"]}
        assert set(shown) == {"m.room.create", "m.room.join_rules"}
        assert "signatures" in shown["m.room.create"]  # whole events
        old = await world.new_room("6")
        assert (await asking.template("knock", old, FAY, "6"))[1]["errcode"] == "M_INCOMPATIBLE_ROOM_VERSION"


async def test_restricted_joins(world: World) -> None:
    async with world.writer(), letting_in(world) as asking:
        space, room_id = await world.new_room("11"), await world.new_room("11")
        allow = [{"type": "m.room_membership", "room_id": space}]
        await set_state(world, room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
        assert (await asking.template("join", room_id, FAY))[1]["errcode"] == "M_FORBIDDEN"
        await join(asking, space, FAY, "11")
        answer = await join(asking, room_id, FAY, "11")
        assert answer["event"]["content"]["join_authorised_via_users_server"] == ALICE
        assert set(answer["event"]["signatures"]) == {FAR, SERVER}
        # A signature for somebody who is not in the space is not to be had.
        _, template = await asking.template("join", space, GUS)
        fields = {**template["event"], "room_id": room_id}
        fields["content"] = {"membership": "join", "join_authorised_via_users_server": ALICE}
        event = finished({"room_version": "11", "event": fields})
        reply = await asking.ask("PUT", f"/v2/send_join/{room_id}/{event.event_id}", dict(event.fields))
        assert (reply[0], reply[1]["errcode"]) == (403, "M_FORBIDDEN")
        # Nobody of ours is in the room that the rule names.
        allow = [{"type": "m.room_membership", "room_id": "!far:far.example"}]
        await set_state(world, room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
        status, reply_body = await asking.template("join", room_id, GUS)
        assert (status, reply_body["errcode"]) == (400, "M_UNABLE_TO_AUTHORISE_JOIN")
        # Somebody could, but may not invite.
        allow = [{"type": "m.room_membership", "room_id": space}]
        await set_state(world, room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})
        await join(asking, space, GUS, "11")
        await set_state(world, room_id, "m.room.power_levels", {"users": {ALICE: 50}, "invite": 60})
        status, reply_body = await asking.template("join", room_id, GUS)
        assert (status, reply_body["errcode"]) == (400, "M_UNABLE_TO_GRANT_JOIN")

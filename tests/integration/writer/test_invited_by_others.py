"""Our users are invited by other servers and invite theirs. Spec: S-S API §Inviting to a room."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from foreign_server import ForeignServer, joiner_of
from letting_in import Asking, finished, letting_in
from writer_world import ALICE, BOB, NOW_MS, SERVER, World

from matrixcore.event_signing import sign_event
from matrixcore.events import Event, parse_event
from matrixcore.identifiers import RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.federation_in.rescissions import InviteEnds
from services.gateway.room_changes import Session
from services.gateway.rooms_elsewhere import RoomsElsewhere
from tessera.commands import Append, NewEvent
from tessera.federation.errors import PeerRefused
from tessera.http.errors import MatrixError
from tessera.restricted_joins import CannotGrantJoin, find_authoriser, list_other_authorisers
from tessera.storage import account_data, user_rooms, users
from tessera.storage.resident_rooms import list_rooms_of_server
from tessera.storage.room_reads.rooms import find_for_reader
from tests.fixtures.foreign_room import FAR, FAR_KEY, FAY, ForeignRoom

VERSIONS = ["1", "6", "10", "11", "12"]


@asynccontextmanager
async def invited_world(world: World) -> AsyncIterator[Asking]:
    """The endpoints, and an account of Alice's."""
    accounts = next(iter(world.shards.databases.values()))
    async with accounts.transaction() as tx:
        await users.add_user(tx, ALICE, password_hash=None, displayname="Alice", now_ms=NOW_MS)
    async with world.writer(), letting_in(world) as asking:
        yield asking


async def send_invite(asking: Asking, room: ForeignRoom, event: Event, /, **changed: Any) -> tuple[int, Any]:
    shown = [dict(room.state[key].fields) for key in (("m.room.create", ""), ("m.room.join_rules", ""))]
    body = {"room_version": room.version, "event": dict(event.fields), "invite_room_state": shown, **changed}
    return await asking.ask("PUT", f"/v2/invite/{room.room_id}/{event.event_id}", body)


def invite_of(room: ForeignRoom, user_id: UserId = ALICE) -> Event:
    return room.send("m.room.member", {"membership": "invite"}, sender=FAY, state_key=user_id)


async def row_of(world: World, room: ForeignRoom, user_id: UserId = ALICE) -> Any:
    accounts = next(iter(world.shards.databases.values()))
    async with accounts.reading() as tx:
        return await user_rooms.find_room(tx, user_id, room.room_id)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_invite_is_signed_and_told(world: World, version: str) -> None:
    room = ForeignRoom(version)
    async with invited_world(world) as asking:
        event = invite_of(room)
        status, answer = await send_invite(asking, room, event)
        assert status == 200, answer
        signed = parse_event(answer["event"], ROOM_VERSIONS[version])
        assert (signed.event_id, set(signed.fields["signatures"])) == (event.event_id, {FAR, SERVER})
        row = await row_of(world, room)
        assert (row.membership, row.sender, row.event_id) == ("invite", FAY, event.event_id)
        assert [one["type"] for one in orjson.loads(row.stripped_state)] == [
            "m.room.create", "m.room.join_rules", "m.room.member",
        ]  # fmt: skip
        assert all("signatures" not in one for one in orjson.loads(row.stripped_state))
        assert await send_invite(asking, room, event) == (status, answer)
        assert (await row_of(world, room)).position == row.position


async def test_the_older_form_of_an_invite(world: World) -> None:
    room = ForeignRoom("1")
    async with invited_world(world) as asking:
        event = invite_of(room)
        body = {**event.fields, "unsigned": {"invite_room_state": []}}
        status, answer = await asking.ask("PUT", f"/v1/invite/{room.room_id}/{event.event_id}", body)
        assert (status, answer[0]) == (200, 200)
        assert (await row_of(world, room)).membership == "invite"


async def test_invites_that_are_not_signed(world: World) -> None:
    room = ForeignRoom("12")
    async with invited_world(world) as asking:
        event = invite_of(room)
        assert (await send_invite(asking, room, event, room_version="99"))[1][
            "errcode"
        ] == "M_INCOMPATIBLE_ROOM_VERSION"
        assert (await send_invite(asking, room, event, invite_room_state=[]))[1]["errcode"] == "M_INVALID_PARAM"
        other = ForeignRoom("12", creator=UserId(f"@gus:{FAR}"))
        alien = [dict(other.state["m.room.create", ""].fields)]
        assert (await send_invite(asking, room, event, invite_room_state=alien))[1]["errcode"] == "M_INVALID_PARAM"
        stripped = [{"type": "m.room.create", "state_key": "", "sender": FAY, "content": {}}]
        assert (await send_invite(asking, room, event, invite_room_state=stripped))[1]["errcode"] == "M_INVALID_PARAM"
        joined = room.make("m.room.member", {"membership": "join"}, sender=FAY, state_key=FAY)
        assert (await send_invite(asking, room, joined))[1]["errcode"] == "M_INVALID_PARAM"
        nobody = invite_of(room, UserId(f"@nobody:{SERVER}"))
        assert (await send_invite(asking, room, nobody))[0] == 404
        body = {**event.fields, "signatures": {FAR: {FAR_KEY.key_id: "A" * 86}}}
        assert (await send_invite(asking, room, event, event=body))[0] == 403
        accounts = next(iter(world.shards.databases.values()))
        async with accounts.transaction() as tx:
            content = b'{"default_action":"block"}'
            await account_data.set_content(tx, ALICE, "", "m.invite_permission_config", content)
        assert (await send_invite(asking, room, event))[1]["errcode"] == "M_INVITE_BLOCKED"
        assert await row_of(world, room) is None


async def test_an_invite_is_taken_back_by_whom_it_concerns(world: World) -> None:
    room = ForeignRoom("11")
    async with invited_world(world) as asking:
        await send_invite(asking, room, invite_of(room))
        ends = InviteEnds(asking.deps)
        kick = room.make("m.room.member", {"membership": "leave"}, sender=FAY, state_key=ALICE)
        stranger = {**kick.fields, "signatures": {FAR: {FAR_KEY.key_id: "A" * 86}}}
        await ends.take_back(FAR, [stranger])
        assert (await row_of(world, room)).membership == "invite"
        await ends.take_back(FAR, [{"type": "m.room.message"}, dict(kick.fields)])
        assert (await row_of(world, room)).membership == "leave"
        await ends.take_back(FAR, [dict(kick.fields)])  # again is no change
        await send_invite(asking, room, invite_of(room))
        assert (await row_of(world, room)).membership == "invite"


@pytest.mark.parametrize("is_dead", [False, True])
async def test_an_invite_is_rejected_whether_its_server_lives_or_not(world: World, is_dead: bool) -> None:
    room = ForeignRoom("12")
    server = ForeignServer(room)
    joiner = joiner_of(world, server)
    elsewhere = RoomsElsewhere(joiner.changes, joiner.shaker, joiner)
    async with invited_world(world) as asking:
        await send_invite(asking, room, invite_of(room))
        server.is_dead = is_dead
        await elsewhere.leave(ALICE, room.room_id, {"membership": "leave"})
        assert (await row_of(world, room)).membership == "leave"
        assert (room.state["m.room.member", ALICE].membership == "leave") is not is_dead
        server.is_dead = False
        await send_invite(asking, room, invite_of(room))
        assert (await row_of(world, room)).membership == "invite"
        # The room ID names no server: the inviter's is asked.
        await elsewhere.join(Session(ALICE), room.room_id, [], {"membership": "join"})
        assert (await row_of(world, room)).membership == "join"


async def test_invites_of_others_survive_the_last_of_us(world: World) -> None:
    """Alice joins and leaves again: nobody follows the room any more, and Bob may still say no."""
    room = ForeignRoom("12")
    server = ForeignServer(room)
    joiner = joiner_of(world, server)
    elsewhere = RoomsElsewhere(joiner.changes, joiner.shaker, joiner)
    async with invited_world(world) as asking:
        async with asking.deps.accounts.transaction() as tx:
            await users.add_user(tx, BOB, password_hash=None, displayname=None, now_ms=NOW_MS)
        for user_id in (BOB, ALICE):
            assert (await send_invite(asking, room, invite_of(room, user_id)))[0] == 200
        await elsewhere.join(Session(ALICE), room.room_id, [], {"membership": "join"})
        await joiner.changes.append(
            room.room_id, Session(ALICE), NewEvent("m.room.member", ALICE, {"membership": "leave"})
        )
        assert (await row_of(world, room)).membership == "leave"
        assert (await row_of(world, room, BOB)).membership == "invite"
        async with world.shards.of_room(room.room_id).reading() as tx:
            assert not await list_rooms_of_server(tx, [room.room_id], ServerName(SERVER))
        server.is_dead = True
        await elsewhere.leave(BOB, room.room_id, {"membership": "leave"})
        assert (await row_of(world, room, BOB)).membership == "leave"


@pytest.mark.parametrize("version", ["11", "12"])
async def test_knock_elsewhere(world: World, version: str) -> None:
    room = ForeignRoom(version, join_rule={"join_rule": "knock"})
    server = ForeignServer(room)
    joiner = joiner_of(world, server)
    elsewhere = RoomsElsewhere(joiner.changes, joiner.shaker, joiner)
    async with invited_world(world):
        await elsewhere.knock(Session(ALICE), room.room_id, [FAR], {"membership": "knock"})
        row = await row_of(world, room)
        assert row.membership == "knock"
        assert [one["type"] for one in orjson.loads(row.stripped_state)] == ["m.room.create", "m.room.member"]
        # Who can be told shows in the room's state, also where the room ID names no server.
        await elsewhere.leave(ALICE, room.room_id, {"membership": "leave"})
        assert (await row_of(world, room)).membership == "leave"
        assert room.state["m.room.member", ALICE].membership == "leave"


class SigningServer:
    """Signs invites of its users, unless it refuses."""

    def __init__(self) -> None:
        self.refuses: PeerRefused | None = None
        self.bodies: list[Any] = []

    async def put(self, server: str, path: str, body: Any, *_: Any, **__: Any) -> dict[str, Any]:
        self.bodies.append(body)
        if self.refuses is not None:
            raise self.refuses
        if isinstance(body, bytes):  # a join
            return {"event": dict(sign_event(parse_event(body, ROOM_VERSIONS["11"]), FAR, FAR_KEY).fields)}
        event = sign_event(parse_event(body["event"], ROOM_VERSIONS[body["room_version"]]), ServerName(FAR), FAR_KEY)
        return {"event": {**event.fields, "unsigned": {"extra": 1}}}


@pytest.mark.parametrize("version", ["1", "11", "12"])
async def test_users_of_others_are_invited(world: World, version: str) -> None:
    server = SigningServer()
    joiner = joiner_of(world, server)  # type: ignore[arg-type]
    elsewhere = RoomsElsewhere(joiner.changes, joiner.shaker, joiner)
    async with world.writer():
        room_id = await world.new_room(version)
        server.refuses = PeerRefused(403, "M_INVITE_BLOCKED", "No")
        with pytest.raises(MatrixError) as refused:
            await elsewhere.invite(Session(ALICE), room_id, FAY, {"membership": "invite"})
        assert refused.value.errcode == "M_INVITE_BLOCKED"
        assert await member(world, room_id, FAY) is None
        server.refuses = None
        event_id = await elsewhere.invite(Session(ALICE), room_id, FAY, {"membership": "invite"})
        row = await member(world, room_id, FAY)
        assert row is not None
        event = parse_event(row, ROOM_VERSIONS[version])
        assert event.event_id == event_id
        assert set(event.fields["signatures"]) == {SERVER, FAR}
        shown = {(one["type"], one["state_key"]) for one in server.bodies[-1]["invite_room_state"]}
        assert shown == {("m.room.create", ""), ("m.room.join_rules", ""), ("m.room.member", ALICE)}
        with pytest.raises(MatrixError) as refused:  # who may not invite is told so before anybody is asked
            await elsewhere.invite(Session(BOB), room_id, FAY, {"membership": "invite"})
        assert refused.value.status == 403
        assert len(server.bodies) == 2


async def member(world: World, room_id: RoomId, user_id: UserId) -> bytes | None:
    query = (
        "SELECT e.pdu FROM rooms.current_state s JOIN rooms.events e USING (room_id, event_id)"
        " WHERE s.room_id = $1 AND s.state_key = $2"
    )
    pdu: bytes | None = await world.shards.of_room(room_id).fetchval(query, room_id, user_id)
    return pdu


async def test_another_server_vouches_for_a_join(world: World) -> None:
    server = SigningServer()
    joiner = joiner_of(world, server)  # type: ignore[arg-type]
    elsewhere = RoomsElsewhere(joiner.changes, joiner.shaker, joiner)
    async with world.writer(), letting_in(world) as asking:
        space, room_id = await world.new_room("11"), await world.new_room("11")
        await world.accepted(space, Append(NewEvent("m.room.member", BOB, {"membership": "join"})), BOB)
        _, template = await asking.template("join", room_id, FAY)
        join = finished(template)
        assert (await asking.ask("PUT", f"/v2/send_join/{room_id}/{join.event_id}", dict(join.fields)))[0] == 200
        allow = [{"type": "m.room_membership", "room_id": space}]
        rules = {"join_rule": "restricted", "allow": allow}
        await world.accepted(room_id, Append(NewEvent("m.room.join_rules", "", rules)))
        levels = {"users": {ALICE: 50, FAY: 100}, "invite": 60, "state_default": 50}
        await world.accepted(room_id, Append(NewEvent("m.room.power_levels", "", levels)))
        async with world.shards.of_room(room_id).reading() as tx:
            found = await find_for_reader(tx, room_id, BOB)
        assert found is not None
        with pytest.raises(CannotGrantJoin):
            await find_authoriser(world.shards, found.room, BOB, SERVER)
        authorisers = await list_other_authorisers(world.shards, found.room, SERVER)
        assert authorisers == [FAY]
        server.refuses = PeerRefused(403, "M_FORBIDDEN", "No")
        with pytest.raises(MatrixError):
            await elsewhere.join_vouched_for(Session(BOB), room_id, authorisers, {"membership": "join"})
        server.refuses = None
        await elsewhere.join_vouched_for(Session(BOB), room_id, authorisers, {"membership": "join"})
        pdu = await member(world, room_id, BOB)
        assert pdu is not None
        event = parse_event(pdu, ROOM_VERSIONS["11"])
        assert (event.membership, set(event.fields["signatures"])) == ("join", {SERVER, FAR})

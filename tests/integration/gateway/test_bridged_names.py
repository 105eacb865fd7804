"""Users and aliases that application services make when they are asked for. Spec: AS API §Querying."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from bridge_double import BridgeDouble, running_bridge
from gateway_server import Server

from matrixcore.identifiers import RoomAlias, RoomId, ServerName, UserId
from services.gateway.room_directory import resolve_alias
from tessera.http.errors import MatrixError, NotFound
from tessera.storage import aliases

ZOE = UserId("@_irc_zoe:test.example")
ALIAS = RoomAlias("#_irc_matrix:test.example")
ROOM = RoomId("!room:test.example")
USERS, ROOMS = "/_matrix/app/v1/users/", "/_matrix/app/v1/rooms/"
LOGIN = "m.login.application_service"
TOKEN = {"Authorization": "Bearer as-token-of-irc"}


@pytest.fixture
async def bridge() -> AsyncIterator[BridgeDouble]:
    async with running_bridge() as made:
        yield made


@pytest.fixture
def bridged(make_server: Callable[..., Server], bridge: BridgeDouble, tmp_path: Path) -> Server:
    return make_server(app_service_config_files=[bridge.write_registration(tmp_path)])


async def test_a_user_is_made_when_somebody_looks(bridged: Server, bridge: BridgeDouble) -> None:
    async def make() -> dict[str, str]:
        body = {"type": LOGIN, "username": "_irc_zoe", "inhibit_login": True}
        (await bridged.post("/register", body, headers=TOKEN)).raise_for_status()
        return {}

    bridge.answers[USERS + ZOE] = make
    assert (await bridged.get(f"/profile/{ZOE}")).json() == {"displayname": "_irc_zoe"}
    assert (await bridged.get(f"/profile/{ZOE}")).status_code == 200
    assert bridge.asked == [USERS + ZOE], "it is known now"
    assert (await bridged.get("/profile/@alice:test.example")).status_code == 404
    assert (await bridged.get("/profile/@_irc_bot:test.example")).status_code == 404
    assert len(bridge.asked) == 1, "others are asked about nobody, and a service not about itself"


async def test_several_ask_once_and_a_no_is_remembered_for_a_while(bridged: Server, bridge: BridgeDouble) -> None:
    bridges = bridged.gateway.rooms.bridges
    assert bridges is not None
    await asyncio.gather(*(bridges.make_users([ZOE]) for _ in range(5)))
    assert bridge.asked == [USERS + ZOE]
    await bridges.make_users([ZOE])
    assert len(bridge.asked) == 1
    bridged.clock.shift(6)
    bridge.missing = "M_UNRECOGNIZED"
    await bridges.make_users([ZOE])
    assert bridge.asked[1:] == [USERS + ZOE, f"/users/{ZOE}?access_token=hs-token-of-irc"], (
        "older services know the older path alone"
    )


async def test_an_alias_leads_to_the_room_that_the_service_makes(bridged: Server, bridge: BridgeDouble) -> None:
    async def make() -> dict[str, str]:
        async with bridged.accounts.transaction() as tx:
            await aliases.add_alias(tx, ALIAS, ROOM, UserId("@_irc_bot:test.example"), now_ms=1)
        return {}

    changes, server = bridged.gateway.rooms, ServerName("test.example")
    with pytest.raises(NotFound):
        await resolve_alias(changes, server, ALIAS)
    bridged.clock.shift(6)
    bridge.answers[ROOMS + ALIAS] = make
    assert (await resolve_alias(changes, server, ALIAS)).room_id == ROOM
    asked = len(bridge.asked)
    with pytest.raises(NotFound):
        await resolve_alias(changes, server, RoomAlias("#other:test.example"))
    assert len(bridge.asked) == asked


async def test_a_service_that_does_not_answer_is_asked_again_and_then_408(
    bridged: Server, bridge: BridgeDouble
) -> None:
    bridge.status = 500
    asking = asyncio.create_task(resolve_alias(bridged.gateway.rooms, ServerName("test.example"), ALIAS))
    while not asking.done():
        await asyncio.sleep(0.01)
        await bridged.clock.advance(0.5)
    with pytest.raises(MatrixError) as refused:
        await asking
    assert refused.value.status == 408
    assert len(bridge.asked) == 3


async def test_aliases_of_a_service_are_its_own(bridged: Server) -> None:
    alice = await bridged.register("alice")
    room = {"room_id": ROOM}
    path = f"/directory/room/{ALIAS.replace('#', '%23')}"
    for refused in (await alice.put(path, room), await alice.delete(path)):
        assert (refused.status_code, refused.json()["errcode"]) == (400, "M_EXCLUSIVE")
    created = await alice.post("/createRoom", {"room_alias_name": "_irc_matrix"})
    assert created.json()["errcode"] == "M_EXCLUSIVE"
    other = "/_matrix/client/v3/directory/room/%23other:test.example"
    outside = await bridged.client.put(other, json=room, headers=TOKEN)
    assert outside.json()["errcode"] == "M_EXCLUSIVE"

"""Networks of bridges: what their application services say of them. Spec: C-S API §Third-party Networks."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from bridge_double import BridgeDouble, running_bridge
from gateway_server import Server

NETWORKS = "/thirdparty"
APP = "/_matrix/app/v1/thirdparty"
IRC = {
    "user_fields": ["network", "nickname"],
    "location_fields": ["network", "channel"],
    "icon": "mxc://example.org/aBcDeFgH",
    "field_types": {"network": {"regexp": ".+", "placeholder": "irc.example.org"}},
    "instances": [{"desc": "Freenode", "fields": {"network": "freenode"}, "network_id": "freenode"}],
}
ROOM = {"alias": "#_irc_matrix:test.example", "protocol": "irc", "fields": {"channel": "#matrix"}}
ZOE = {"userid": "@_irc_zoe:test.example", "protocol": "irc", "fields": {"nickname": "zoe"}}


@pytest.fixture
async def bridge() -> AsyncIterator[BridgeDouble]:
    async with running_bridge() as made:
        yield made


@pytest.fixture
def bridged(make_server: Callable[..., Server], bridge: BridgeDouble, tmp_path: Path) -> Server:
    return make_server(app_service_config_files=[bridge.write_registration(tmp_path, protocols=["irc", "xmpp"])])


@pytest.mark.parametrize(
    ("path", "nothing"), [("protocols", {}), ("location?alias=%23a:b", []), ("user?userid=%40a:b", [])]
)
async def test_nothing_is_bridged(server: Server, path: str, nothing: object) -> None:
    alice = await server.register("alice")
    reply = await alice.get(f"{NETWORKS}/{path}")
    assert (reply.status_code, reply.json()) == (200, nothing)


@pytest.mark.parametrize("path", ["protocol/irc", "location/irc", "user/irc"])
async def test_an_unknown_protocol_is_not_found(server: Server, path: str) -> None:
    alice = await server.register("alice")
    reply = await alice.get(f"{NETWORKS}/{path}")
    assert (reply.status_code, reply.json()["errcode"]) == (404, "M_NOT_FOUND")


async def test_protocols_are_asked_for_once_in_a_while(bridged: Server, bridge: BridgeDouble) -> None:
    alice = await bridged.register("alice")
    bridge.answers[f"{APP}/protocol/irc"] = IRC
    expected: dict[str, Any] = {**IRC, "instances": [{**IRC["instances"][0], "instance_id": "irc|freenode"}]}  # type: ignore[index,dict-item]
    for _ in range(2):
        assert (await alice.get(f"{NETWORKS}/protocols")).json() == {"irc": expected}
    assert (await alice.get(f"{NETWORKS}/protocol/irc")).json() == expected
    assert (await alice.get(f"{NETWORKS}/protocol/xmpp")).status_code == 404
    assert bridge.asked.count(f"{APP}/protocol/irc") == 1
    bridged.clock.shift(301)
    await alice.get(f"{NETWORKS}/protocol/irc")
    assert bridge.asked.count(f"{APP}/protocol/irc") == 2


@pytest.mark.parametrize("answer", [[], {"instances": 1}, {"icon": 5}, {"user_fields": {}}, {"field_types": []}])
async def test_a_protocol_that_is_none_is_not_shown(bridged: Server, bridge: BridgeDouble, answer: Any) -> None:
    alice = await bridged.register("alice")
    bridge.answers[f"{APP}/protocol/irc"] = answer
    assert (await alice.get(f"{NETWORKS}/protocols")).json() == {}


async def test_fields_and_matrix_names_find_rooms_and_users(bridged: Server, bridge: BridgeDouble) -> None:
    alice = await bridged.register("alice")
    bridge.answers |= {
        f"{APP}/location/irc?channel=%23matrix": [ROOM, {"alias": 5}, "x"],
        f"{APP}/user/irc?nickname=zoe": [ZOE],
        f"{APP}/location?alias=%23_irc_matrix:test.example": [ROOM],
        f"{APP}/user?userid=@_irc_zoe:test.example": [ZOE],
    }
    found = await alice.get(f"{NETWORKS}/location/irc", params={"channel": "#matrix"})
    assert (found.status_code, found.json()) == (200, [ROOM])
    assert (await alice.get(f"{NETWORKS}/user/irc", params={"nickname": "zoe"})).json() == [ZOE]
    assert (await alice.get(f"{NETWORKS}/location", params={"alias": ROOM["alias"]})).json() == [ROOM]
    assert (await alice.get(f"{NETWORKS}/user", params={"userid": ZOE["userid"]})).json() == [ZOE]
    assert (await alice.get(f"{NETWORKS}/user/irc", params={"nickname": "nobody"})).status_code == 404
    asked = len(bridge.asked)
    assert (await alice.get(f"{NETWORKS}/user", params={"userid": "@alice:test.example"})).json() == []
    assert len(bridge.asked) == asked, "it is not in the service's namespaces"


async def test_a_service_that_fails_has_nothing_to_say(bridged: Server, bridge: BridgeDouble) -> None:
    alice = await bridged.register("alice")
    bridge.status = 500
    assert (await alice.get(f"{NETWORKS}/protocols")).json() == {}
    assert (await alice.get(f"{NETWORKS}/user/irc", params={"nickname": "zoe"})).status_code == 404
    assert (await alice.get(f"{NETWORKS}/location", params={"alias": ROOM["alias"]})).json() == []

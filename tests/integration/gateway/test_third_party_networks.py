"""Networks of bridges: there are none, and the answers say so."""

import pytest
from gateway_server import Server

NETWORKS = "/thirdparty"


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

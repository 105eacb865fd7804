"""Paths of proposals lead where the specification's own do."""

from gateway_server import Server

FIELD = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/@alice:test.example/org.example.mood"


async def test_profile_fields_by_the_proposals_path(server: Server) -> None:
    alice = await server.register("alice")
    assert (await alice.put(FIELD, {"org.example.mood": "good"})).status_code == 200
    assert (await alice.get(FIELD)).json() == {"org.example.mood": "good"}
    assert (await alice.get("/profile/@alice:test.example/org.example.mood")).json() == {"org.example.mood": "good"}
    assert (await alice.delete(FIELD)).status_code == 200
    assert (await alice.get(FIELD)).status_code == 404


async def test_cross_signing_keys_by_the_proposals_path(server: Server) -> None:
    alice = await server.register("alice")
    reply = await alice.post("/_matrix/client/unstable/keys/device_signing/upload", {"master_key": {}})
    other = await alice.post("/keys/device_signing/upload", {"master_key": {}})
    assert (reply.status_code, reply.json()["errcode"]) == (other.status_code, other.json()["errcode"])
    assert reply.status_code in (400, 401)

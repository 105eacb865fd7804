"""Tessera and a real Synapse as peers: how they find and believe each other. All else is in synapse/."""

import secrets

import httpx

from matrixcore.server_keys import read_key_document
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.meeting import Watch, until_member
from tests.fixtures.synapse import SynapseServer


async def test_each_server_reads_the_keys_of_the_other(
    tessera_server: FederatedServer, synapse_server: SynapseServer
) -> None:
    async with httpx.AsyncClient(verify=tessera_server.peer_context(), timeout=30) as http:
        servers = (tessera_server, synapse_server)
        documents = {}
        for server in servers:
            base = f"https://{server.server_name}/_matrix"
            assert (await http.get(f"{base}/federation/v1/version")).json()["server"]["name"]
            documents[server.server_name] = (await http.get(f"{base}/key/v2/server")).json()
        for server, other in (servers, servers[::-1]):
            # As a notary a server fetches what it passes on.
            key_ids = read_key_document(documents[other.server_name], now_ms=0).keys
            question = {
                "server_keys": {other.server_name: {key_id: {"minimum_valid_until_ts": 0} for key_id in key_ids}}
            }
            answer = await http.post(f"https://{server.server_name}/_matrix/key/v2/query", json=question)
            assert len(answer.json().get("server_keys", ())) == 1, answer.text + server.log.read_text()[-3000:]
            (passed_on,) = answer.json()["server_keys"]
            assert read_key_document(passed_on, now_ms=0).server_name == other.server_name
            assert server.server_name in passed_on["signatures"]


async def test_people_of_both_servers_talk(tessera_server: FederatedServer, synapse_server: SynapseServer) -> None:
    async with tessera_server.connected() as ours, synapse_server.connected() as theirs:
        alice = await ours.register(f"alice{secrets.token_hex(4)}")
        bob = await theirs.register(f"bob{secrets.token_hex(4)}")
        for host, guest, hosts in ((alice, bob, tessera_server), (bob, alice, synapse_server)):
            watch = await Watch.begin(guest)
            room_id = await host.make_room(preset="private_chat", room_version="12", invite=[guest.user_id])
            await watch.until_section(room_id, "invite")
            await guest.post(f"/join/{room_id}?server_name={hosts.server_name}")
            await until_member(host, room_id, guest.user_id, "join")
            watches = {host.user_id: await Watch.begin(host), guest.user_id: watch}
            for sender, hearer in ((host, guest), (guest, host)):
                await watches[hearer.user_id].until_event(room_id, await sender.send(room_id, "hello"))

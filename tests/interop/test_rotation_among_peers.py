"""`tessera rotate-signing-key` on a running server whose peer is a Synapse."""

import asyncio
import sys

import httpx

from matrixcore.server_keys import read_key_document
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.synapse import SynapseServer


async def command(*words: str) -> str:
    """What a command says that succeeds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_peer_believes_the_new_key_and_still_has_the_old_one(
    tessera_server: FederatedServer, synapse_server: SynapseServer
) -> None:
    config = str(tessera_server.config)
    assert "believes ours" in await command("doctor", synapse_server.server_name, "--config", config)
    said = await command("rotate-signing-key", "--config", config)
    await tessera_server.stop()
    await tessera_server.start()
    async with httpx.AsyncClient(verify=tessera_server.peer_context(), timeout=30) as http:
        answer = await http.get(f"https://{tessera_server.server_name}/_matrix/key/v2/server")
    keys = read_key_document(answer.json(), now_ms=0).keys
    ((new, _),) = [(key_id, key) for key_id, key in keys.items() if not key.is_old]
    assert f"now holds {new}" in said
    assert [key_id for key_id, key in keys.items() if key.is_old] == ["ed25519:a_test"]
    assert "believes ours" in await command("doctor", synapse_server.server_name, "--config", config)

"""`tessera doctor` on a running server, with a Synapse as its peer."""

import asyncio
import sys
from pathlib import Path

import yaml

from matrixcore.signing import SigningKey, write_signing_keys
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.synapse import SynapseServer


async def doctor(config: Path, *peers: str) -> tuple[int, str]:
    """(exit status, output) of the command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "doctor", *peers, "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def test_the_command_on_a_running_server_and_a_synapse(
    tessera_server: FederatedServer, synapse_server: SynapseServer
) -> None:
    status, output = await doctor(tessera_server.config, synapse_server.server_name)
    assert status == 0, output
    assert "Synapse 1." in output
    assert "believes ours" in output
    config = yaml.safe_load(tessera_server.config.read_text())
    key = tessera_server.folder / "other.key"
    key.write_text(write_signing_keys([SigningKey("a_other", b"z" * 32)]))
    wrong = tessera_server.folder / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**config, "signing_key_path": str(key)}))
    status, output = await doctor(wrong)
    assert status == 1
    assert "ed25519:a_other, with which this server signs, is not published there" in output
    await tessera_server.stop()
    status, output = await doctor(tessera_server.config)
    assert status == 1
    assert "no connection" in output

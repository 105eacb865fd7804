"""`tessera doctor` as operators call it, on a running server whose certificate is over."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tessera.clock import SystemClock
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority


async def test_an_expired_certificate_is_named_and_the_command_fails(
    peer_authority: PeerAuthority, tmp_path: Path
) -> None:
    yesterday = datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC) - timedelta(days=1)
    over = peer_authority.issue(not_after=yesterday)
    files = {"tls_certificate_path": str(over.chain), "tls_private_key_path": str(over.key)}
    server = FederatedServer(tmp_path, peer_authority, **files)
    await server.start()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "doctor", "--config", str(server.config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        await server.stop()
    assert process.returncode == 1
    assert "certificate has expired" in " ".join(output.decode().split())

"""The short form of a server that is killed while a peer sends to it; tests.chaos.peer_kills has a cluster, too."""

from pathlib import Path

import pytest

from tests.chaos.peer_kills import restarting, run
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.small_peer import small_peer


@pytest.mark.timeout(280)
async def test_what_was_acknowledged_to_a_peer_survives_kills(peer_authority: PeerAuthority, tmp_path: Path) -> None:
    server = FederatedServer(tmp_path / "server", peer_authority)
    await server.start()
    try:
        async with server.connected() as api, small_peer(peer_authority, server.server_name) as peer:
            report = await run(api, peer, restarting(server), kills=3, seed=5, pdus_a_second=200)
        assert report.kills == 3
        assert report.repeated > 0
    finally:
        await server.stop()

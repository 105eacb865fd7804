"""Peers behind an HTTP proxy, as companies have it."""

import asyncio

import pytest

from tessera.federation.connections import PeerConnections, PeerTls, Proxy
from tessera.http.address_guard import AddressGuard
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import WrittenDns, answering, json_of


@pytest.mark.parametrize(
    ("host", "through"),
    [
        ("peer.example", True),
        ("near.example", False),
        ("a.near.example", False),
        ("notnear.example", True),
        ("a.dotted.example", False),
        ("10.1.2.3", False),
        ("11.1.2.3", True),
        ("::1", True),
    ],
)
def test_for_whom_it_is(host: str, through: bool) -> None:
    assert Proxy("http://p:1", ("near.example", ".dotted.example", "10.0.0.0/8")).is_for(host) is through
    assert not Proxy("http://p:1", ("*",)).is_for(host)


async def test_tls_goes_through_untouched(peer_authority: PeerAuthority) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b"\r\n")[0])
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while piece := await source.read(65536):
                sink.write(piece)
                await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True)

    guard = AddressGuard()  # nothing of this machine may be called
    async with answering(peer_authority, {"*": json_of({"a": 1})}, names=("peer.example",)) as port:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        proxy = Proxy(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        tls = PeerTls([peer_authority.ca_file])
        connections = PeerConnections(tls, guard, WrittenDns(), proxy=proxy)
        try:
            context = tls.context_for("peer.example")  # type: ignore[arg-type]
            url = "https://srv.example:8448/x"
            answer = await connections.request("GET", url, ssl=context, server_hostname="peer.example")
            assert await answer.json() == {"a": 1}
            with pytest.raises(OSError, match="may not be called"):
                await connections.request("GET", "https://127.0.0.1:8448/x", ssl=context)
        finally:
            await connections.close()
            server.close()
    assert asked == [b"CONNECT srv.example:8448 HTTP/1.1"]

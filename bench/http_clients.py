"""What a request to a peer costs with aiohttp and with httpx: CPU, memory, and connections that are kept.

`python -m bench.http_clients`: a TLS server in a process of its own, each client in another; JSON of 2 KB to and fro.
"""

import asyncio
import multiprocessing
import resource
import ssl
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import trustme

REQUESTS = 2_000
AT_ONCE = 16
BODY = b'{"pdus":[' + b",".join(b'{"a":"' + b"x" * 180 + b'"}' for _ in range(10)) + b"]}"


def _serve(folder: Path, ready: Connection) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=BODY, content_type="application/json")

    async def run() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        app = web.Application()
        app.router.add_put("/x", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def _report(name: str, before_kib: int, cpu: float, wall: float) -> str:
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    return f"{name:8} {cpu / REQUESTS * 1e6:5.0f} µs CPU a request, {REQUESTS / wall:5.0f}/s, {grown:4.1f} MiB more"


def _ask(kind: str, port: int, ca: Path, result: Connection) -> None:
    import uvloop

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    url = f"https://localhost:{port}/x"

    async def measured(send_one: object) -> None:
        assert callable(send_one)

        async def worker(count: int) -> None:
            for _ in range(count):
                await send_one()

        await asyncio.gather(*(worker(10) for _ in range(AT_ONCE)))
        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(worker(REQUESTS // AT_ONCE) for _ in range(AT_ONCE)))
        result.send(_report(kind, before, time.process_time() - cpu, time.perf_counter() - wall))

    async def with_aiohttp() -> None:
        import aiohttp

        context = ssl.create_default_context(cafile=str(ca))
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

            async def send_one() -> None:
                async with session.put(url, data=BODY, ssl=context) as answer:
                    assert await answer.read() == BODY

            await measured(send_one)

    async def with_httpx() -> None:
        import httpx

        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(ca)), limits=limits) as client:

            async def send_one() -> None:
                assert (await client.put(url, content=BODY)).content == BODY

            await measured(send_one)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(with_aiohttp() if kind == "aiohttp" else with_httpx())


def main() -> None:
    """Print a line for each client, twice."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
        for number, pem in enumerate(certificate.cert_chain_pems):
            pem.write_to_path(str(folder / "chain.pem"), append=number > 0)
        ours, theirs = context.Pipe()
        server = context.Process(target=_serve, args=(folder, theirs), daemon=True)
        server.start()
        port = ours.recv()
        for kind in ("aiohttp", "httpx") * 2:
            client = context.Process(target=_ask, args=(kind, port, folder / "ca.pem", theirs))
            client.start()
            print(ours.recv())
            client.join()
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()

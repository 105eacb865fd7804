"""The ways to reach Redis: passwords, a database's number, TLS, and whichever server Sentinel names."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from fanout_listening import ALICE, Listener

from tessera.clock import SystemClock
from tessera.config import RedisSettings
from tessera.fanout import UserWake
from tessera.fanout.redis import RedisFanout, RedisRateLimits, RedisUnavailable, open_fanout
from tessera.http.limits import Rate
from tessera.ids import IdSource
from tests.fixtures.valkey import ValkeyProcess, free_port

PASSWORD = "p@ss:word/?#"


# What docs/operations.md says that the user needs.
COMMANDS = "+publish +subscribe +unsubscribe +ping +eval +evalsha +get +set +time +role +client|setname +select"


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Ends what is started in it."""
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, server: ValkeyProcess) -> ValkeyProcess:
    stack.callback(server.remove)
    server.start()
    return server


def settings_of(**fields: object) -> RedisSettings:
    return RedisSettings.model_validate({"key_prefix": "test:"} | fields)


async def check_works(fanout: RedisFanout) -> None:
    """Something that is published comes back."""
    listener = Listener()
    subscription = await listener.subscribe(fanout)
    await subscription.follow_users([ALICE])
    await fanout.publish_user_wakes([UserWake(ALICE, 5)])
    await listener.until(lambda: listener.of("user_wakes") == [[UserWake(ALICE, 5)]])
    await subscription.close()


async def test_a_password_in_the_url_or_beside_it(servers: ExitStack) -> None:
    server = started(servers, ValkeyProcess(f'requirepass "{PASSWORD}"', password=PASSWORD))
    with_password = server.url.replace("unix://", f"unix://:{quote(PASSWORD, safe='')}@") + "?db=3"
    for settings in (settings_of(url=with_password), settings_of(url=server.url, password=PASSWORD)):
        async with open_fanout(settings, SystemClock(), IdSource()) as fanout:
            await check_works(fanout)


async def test_a_user_who_may_do_no_more_than_is_needed(servers: ExitStack) -> None:
    user = f"user chat on >{PASSWORD} ~test:* &test:* -@all {COMMANDS}"
    server = started(servers, ValkeyProcess(f"{user}"))
    settings = settings_of(url=server.url, username="chat", password=PASSWORD)
    rates = {"rc_message": Rate(1, 1)}
    async with open_fanout(settings, SystemClock(), IdSource()) as fanout:
        await check_works(fanout)
        limits = RedisRateLimits(fanout.publisher, fanout.key_prefix, rates, SystemClock())
        limits.check("rc_message", "@alice:test.example")
        await limits.share()
        assert server.command("DBSIZE") == "1"


async def test_a_wrong_password_harms_nobody(servers: ExitStack) -> None:
    server = started(servers, ValkeyProcess(f'requirepass "{PASSWORD}"', password=PASSWORD))
    async with open_fanout(settings_of(url=server.url, password="wrong"), SystemClock(), IdSource()) as fanout:
        assert not fanout.is_healthy
        await fanout.publish_user_wakes([UserWake(ALICE, 5)])
        with pytest.raises(RedisUnavailable):
            await fanout.ping()


async def test_a_server_that_is_not_there_does_not_hold_up_the_start() -> None:
    settings = settings_of(url=f"redis://127.0.0.1:{free_port()}/0")
    async with asyncio.timeout(5), open_fanout(settings, SystemClock(), IdSource()) as fanout:
        assert not fanout.is_healthy
        await (await fanout.subscribe(Listener().subscriber())).follow_partitions([1, 2])


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate that proves itself, and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *made, *subject, *files], check=True, capture_output=True)
    return certificate, key


@asynccontextmanager
async def tls_in_front_of(server: ValkeyProcess, certificate: Path, key: Path) -> AsyncIterator[int]:
    """A TLS end in front of a server: its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    served: set[asyncio.Task[object] | None] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        inner_reader, inner_writer = await asyncio.open_unix_connection(server.socket)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    listening = await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await asyncio.gather(*(task for task in served if task is not None))


async def test_tls_with_an_authority_of_ones_own(servers: ExitStack, tmp_path: Path) -> None:
    server = started(servers, ValkeyProcess())
    certificate, key = make_certificate(tmp_path)
    async with tls_in_front_of(server, certificate, key) as port:
        url = f"rediss://127.0.0.1:{port}"
        settings = settings_of(url=url, tls_ca_path=str(certificate))
        async with open_fanout(settings, SystemClock(), IdSource()) as fanout:
            await check_works(fanout)
        async with open_fanout(settings_of(url=url), SystemClock(), IdSource()) as fanout:
            assert not fanout.is_healthy  # nobody vouches for that certificate


async def test_sentinel_names_the_master_and_its_successor(servers: ExitStack) -> None:
    first, second = (started(servers, ValkeyProcess(port=free_port())) for _ in range(2))
    sentinel = started(
        servers, ValkeyProcess(f"sentinel monitor chat 127.0.0.1 {first.port} 1", port=free_port(), sentinel=True)
    )
    nobody = free_port()
    url = f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{sentinel.port}/chat"
    async with open_fanout(settings_of(url=url), SystemClock(), IdSource()) as fanout:
        await check_works(fanout)
        listener = Listener()
        await listener.subscribe(fanout)
        sentinel.command("SENTINEL", "REMOVE", "chat")
        first.kill()
        await listener.until(lambda: "down" in listener.kinds())
        sentinel.command("SENTINEL", "MONITOR", "chat", "127.0.0.1", str(second.port), "1")
        await listener.until(lambda: listener.kinds()[-1] == "reset")
        assert "tessera-subscribe" in second.command("CLIENT", "LIST", "TYPE", "pubsub", whole=True)


async def test_a_server_that_is_no_master_is_not_used(servers: ExitStack) -> None:
    master = started(servers, ValkeyProcess(port=free_port()))
    replica = started(servers, ValkeyProcess(f"replicaof 127.0.0.1 {master.port}", port=free_port()))
    sentinel = started(
        servers, ValkeyProcess(f"sentinel monitor chat 127.0.0.1 {replica.port} 1", port=free_port(), sentinel=True)
    )
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/chat"
    async with open_fanout(settings_of(url=url), SystemClock(), IdSource()) as fanout:
        assert not fanout.is_healthy

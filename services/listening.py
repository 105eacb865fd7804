"""The HTTP listeners of a process: sockets, uvicorn, and how they come to an end."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera.config import Listener, Settings
from tessera.http.exchange import REPLY
from tessera.http.proxies import Proxies
from tessera.http.server_protocol import BoundedHttpProtocol
from tessera.service import CannotStart

KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
PROBE_SECONDS = 2.0
_CLOSE = (b"connection", b"close")


def bind(listener: Listener) -> list[socket.socket]:
    """The listener's sockets, taken before anything else is started.

    Raises:
        CannotStart: an address, a port or a path cannot be had.
    """
    if listener.path is not None:
        return [_bind_path(listener.path, listener.mode)]
    sockets: list[socket.socket] = []
    port = listener.port
    for address in listener.bind_addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            bound = socket.socket(family)
        except OSError:
            continue  # a machine without IPv6
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            bound.bind((address, port))
            bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL and len(listener.bind_addresses) > 1:
                continue
            for other in sockets:
                other.close()
            raise CannotStart(f"cannot listen on {_show(address, port)}: {error.strerror}") from error
        bound.setblocking(False)
        port = port or bound.getsockname()[1]  # one free port for all addresses
        sockets.append(bound)
    if not sockets:
        raise CannotStart(f"cannot listen on any of {', '.join(listener.bind_addresses)}")
    return sockets


def _bind_path(path: Path, mode: int) -> socket.socket:
    """A Unix socket. One that a killed process has left is replaced, one that answers is not."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            if _answers(path):
                raise CannotStart(f"cannot listen on {path}: another process does")
            path.unlink()
        bound.bind(str(path))
        path.chmod(mode)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise CannotStart(f"cannot listen on {path}: {error.strerror or error}") from error
    except CannotStart:
        bound.close()
        raise
    bound.setblocking(False)
    return bound


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # somebody is there, and busy
            return True
        return True


def close(listener: Listener, sockets: Sequence[socket.socket]) -> None:
    """Give a listener's sockets back; the path of a Unix socket goes with it."""
    for bound in sockets:
        bound.close()
    if listener.path is not None:
        listener.path.unlink(missing_ok=True)


def urls_of(listener: Listener, sockets: Sequence[socket.socket]) -> Iterator[str]:
    """Where a listener's sockets are reached."""
    for bound in sockets:
        if listener.path is not None:
            yield f"unix:{listener.path}"
            continue
        address, port = bound.getsockname()[:2]
        yield f"{'https' if listener.tls else 'http'}://{_show(address, port)}"


def _show(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Closing:
    """Whether the process is about to end.

    From then on every answer closes its connection, so that proxies which keep connections open take none of these
    again, and no request meets a connection that is being closed.
    """

    def __init__(self) -> None:
        self.is_closing = False

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, with the header once it is time."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if self.is_closing:
                scope.pop(REPLY, None)  # it would pass by
                send = _closing(send)
            await app(scope, receive, send)

        return call


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [header for header in message.get("headers", ()) if header[0].lower() != _CLOSE[0]]
            message = {**message, "headers": [*kept, _CLOSE]}
        await send(message)

    return send_and_close


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which the process has, and without its ten ticks a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Run until `end`. The ticks keep a Date header and count requests, neither of which is wanted."""
        await self.on_tick(0)
        await self._ended.wait()

    def end(self) -> None:
        """Accept nothing more."""
        self.should_exit = True
        self._ended.set()


class HttpServers:
    """The servers of all listeners of a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servers: list[_Server] = []
        self._running: list[asyncio.Task[None]] = []

    async def start(self, app: ASGIApp, listener: Listener, sockets: Sequence[socket.socket]) -> None:
        """Answer requests on these sockets, which are closed in the end.

        Raises:
            CannotStart: TLS does not work.
        """
        server = _http_server(app, self._settings, listener)
        self._servers.append(server)
        task = asyncio.create_task(server.serve(sockets=list(sockets)))
        self._running.append(task)
        while not server.started:
            if task.done():
                task.result()
                raise CannotStart("an HTTP server did not start")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Accept nothing more, and finish what was begun, in `drain_seconds` at most."""
        for server in self._servers:
            server.end()
        await asyncio.gather(*self._running)


def _http_server(app: ASGIApp, settings: Settings, listener: Listener) -> _Server:
    tls: dict[str, Path | None] = {}
    if listener.tls:
        tls = {"ssl_certfile": settings.tls_certificate_path, "ssl_keyfile": settings.tls_private_key_path}
    config = uvicorn.Config(
        Proxies(settings.tessera.trusted_proxies).around(app) if listener.x_forwarded else app,
        http=BoundedHttpProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.tessera.drain_seconds),
        **tls,  # type: ignore[arg-type]  # of mixed types
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"TLS: {settings.tls_certificate_path}, {settings.tls_private_key_path}: {error}") from error
    return _Server(config)

"""The command `tessera`: serve, generate-config, check-config, register-user, migrate."""

import asyncio
import getpass
import hashlib
import hmac
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from services.serve import serve
from services.stores import open_stores
from tessera.config import ConfigError, Settings, generate_config, read_settings
from tessera.embedded_postgres import EmbeddedPostgresError
from tessera.logging import configure_logging
from tessera.service import CannotStart
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.migrations import MigrationError
from tessera.storage.placement import PlacementMismatch

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="homeserver.yaml")]
DEFAULT_CONFIG = Path("data/homeserver.yaml")
# Whatever an operator can mend is one line and this status.
FAILED = 1
_ONE_LINE = (CannotStart, EmbeddedPostgresError, DatabaseUnavailable, MigrationError, PlacementMismatch)


def main() -> None:
    """The entry point."""
    app()


@app.command("serve")
def serve_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the whole homeserver in one process, until Ctrl-C or SIGTERM."""
    settings = _read(config)
    _set_up_logging(settings)

    def ready(urls: Sequence[str]) -> None:
        _welcome(settings, config, urls)

    _run(lambda: serve(settings, progress=_progress, ready=ready))


@app.command("generate-config")
def generate_config_command(
    server_name: Annotated[str, typer.Option(help="the part of user IDs after the colon; never changes")] = "localhost",
    data: Annotated[Path, typer.Option(help="folder of the configuration, keys, database and media")] = Path("data"),
    port: Annotated[int, typer.Option(help="where clients connect")] = 8008,
) -> None:
    """Write homeserver.yaml with fresh secrets, and a signing key; refuses to overwrite."""
    try:
        path = generate_config(server_name, data, port=port)
    except (ConfigError, OSError) as error:
        _fail(error)
    console.print(f"wrote {path}")


@app.command("check-config")
def check_config_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say whether a homeserver.yaml is right, key by key."""
    settings = _read(config)
    for key in settings.unused_keys:
        console.print(f"[yellow]{key}[/yellow] is Synapse's and means nothing here")
    console.print(f"{config}: a configuration for {settings.server_name}, nothing wrong with it")


@app.command("migrate")
def migrate_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Bring the databases' schemas up to date, and end."""
    settings = _read(config)
    _set_up_logging(settings)

    async def run() -> None:
        async with open_stores(settings, progress=_progress):
            console.print("the schemas are up to date")

    _run(run)


@app.command("register-user")
def register_user_command(
    server: Annotated[str | None, typer.Argument(help="the server's URL; default: the first listener")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    user: Annotated[str | None, typer.Option("--user", "-u", help="localpart")] = None,
    password: Annotated[str | None, typer.Option("--password", "-p", help="asked for if it is not given")] = None,
    password_file: Annotated[Path | None, typer.Option(help="read the password from there")] = None,
    admin: Annotated[bool | None, typer.Option("--admin/--no-admin", "-a", help="a server administrator?")] = None,
    shared_secret: Annotated[str | None, typer.Option("--shared-secret", "-k", help="default: the config's")] = None,
) -> None:
    """Make an account on the running server."""
    settings = _read(config) if shared_secret is None or server is None else None
    if shared_secret is None and settings is not None and settings.registration_shared_secret is not None:
        shared_secret = settings.registration_shared_secret.get_secret_value()
    if not shared_secret:
        _fail(CannotStart(f"{config} has no registration_shared_secret; give one with --shared-secret"))
    if server is None and settings is not None:
        server = _local_url(settings)
    user = user or input(f"New user localpart [{getpass.getuser()}]: ") or getpass.getuser()
    if password_file is not None:
        password = _read_password(password_file)
    if password is None:
        password = _ask_password()
    if admin is None:
        admin = sys.stdin.isatty() and input("Make admin [no]: ").strip().lower() in ("y", "yes", "true")
    console.print(f"made {_register(str(server), shared_secret, user, password, admin=admin)}")


def _read_password(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        _fail(CannotStart(f"{path} cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        _fail(CannotStart(f"{path} is not UTF-8"))


def _register(server: str, secret: str, user: str, password: str, *, admin: bool) -> str:
    url = f"{server.rstrip('/')}/_synapse/admin/v1/register"
    try:
        # The operator's own server, often with a certificate that only the outside knows.
        with httpx.Client(verify=not server.startswith("https://127."), timeout=60) as client:
            nonce = _answer(server, client.get(url))["nonce"]
            words = [nonce, user, password, "admin" if admin else "notadmin"]
            mac = hmac.new(secret.encode(), "\x00".join(words).encode(), hashlib.sha1).hexdigest()
            body = {"nonce": nonce, "username": user, "password": password, "admin": admin, "mac": mac}
            user_id: str = _answer(server, client.post(url, json=body))["user_id"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _fail(CannotStart(f"{server} does not answer: {error}"))
    except (ValueError, KeyError, TypeError):
        _fail(CannotStart(f"{server} answers, but not as a homeserver with registration by shared secret"))
    return user_id


def _answer(server: str, reply: httpx.Response) -> dict[str, Any]:
    """The body of a success; a refusal ends the command with the server's words."""
    body: dict[str, Any] = reply.json()
    if reply.status_code != 200:
        _fail(CannotStart(f"{server} refuses: {body.get('error', reply.status_code)}"))
    return body


def _ask_password() -> str:
    while True:
        password = getpass.getpass("Password: ")
        if password and password == getpass.getpass("Confirm password: "):
            return password
        errors.print("Empty, or not the same twice; once more.")


def _local_url(settings: Settings) -> str:
    listener = next((one for one in settings.listeners if "client" in one.resource_names()), settings.listeners[0])
    scheme = "https" if listener.tls else "http"
    return f"{scheme}://127.0.0.1:{listener.port}"


def _read(path: Path) -> Settings:
    try:
        return read_settings(path, os.environ, check_files=True)
    except ConfigError as error:
        _fail(error)


def _set_up_logging(settings: Settings) -> None:
    try:
        configure_logging(settings)
    except ConfigError as error:
        _fail(error)


def _progress(text: str) -> None:
    console.print(f"[dim]·[/dim] {text}")


def _welcome(settings: Settings, config: Path, urls: Sequence[str]) -> None:
    console.print()
    console.print(f"[bold]Tessera[/bold] serves [bold]{settings.server_name}[/bold] on {', '.join(urls)}")
    console.print(f"  configuration  {config}")
    console.print(f"  data           {settings.data_dir}")
    if settings.enable_registration:
        console.print("  first account  register with any Matrix client")
    else:
        console.print(f"  first account  tessera register-user --config {config} --user alice --admin")
    console.print("  stop           Ctrl-C")


def _run(coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(coroutine())
    except _ONE_LINE as error:
        _fail(error)
    except BaseExceptionGroup as group:
        expected, rest = group.split(_ONE_LINE)
        if expected is None or rest is not None:
            raise
        _fail(expected.exceptions[0])


def _fail(error: BaseException) -> NoReturn:
    errors.print("[red]tessera:[/red]", escape(str(error)))
    raise typer.Exit(FAILED)


if __name__ == "__main__":
    main()

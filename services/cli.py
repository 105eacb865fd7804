"""The command `tessera`: serve, run, generate-config, check-config, register-user, migrate, topics, cluster."""

import getpass
import hashlib
import hmac
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services import appservices_command, dead_letters_command, federation_command, partitions_command
from services.cluster.command import cluster_command
from services.command_line import (
    DEFAULT_CONFIG,
    ConfigOption,
    console,
    errors,
    fail,
    read_config,
    run_to_end,
    set_up_logging,
    show_progress,
)
from services.doctor_command import doctor_command
from services.rotate_command import rotate_command
from services.topics_command import topics_command
from services.upkeep_commands import rebuild_command, verify_command
from tessera.config import ConfigError, Settings, generate_config
from tessera.config.services import SERVICE_NAMES
from tessera.service import CannotStart

if TYPE_CHECKING:
    import httpx

UNIX = "unix:"
# What a command needs is imported when it runs: each process of a cluster carries its own service only.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.command("topics")(topics_command)
app.command("rebuild")(rebuild_command)
app.command("verify")(verify_command)
app.command("rotate-signing-key")(rotate_command)
app.command("doctor")(doctor_command)
app.add_typer(dead_letters_command.app, name="dead-letters")
app.add_typer(partitions_command.app, name="partitions")
app.add_typer(federation_command.app, name="federation")
app.add_typer(appservices_command.app, name="appservices")
app.command("cluster")(cluster_command)


def main() -> None:
    """The entry point."""
    app()


@app.command("serve")
def serve_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the whole homeserver in one process, until Ctrl-C or SIGTERM."""
    from services.serve import serve

    settings = read_config(config)
    set_up_logging(settings)

    def ready(urls: Sequence[str]) -> None:
        _welcome(settings, config, urls)

    run_to_end(lambda: serve(settings, progress=show_progress, ready=ready))


@app.command("run")
def run_command(
    service: Annotated[str, typer.Argument(help="|".join(SERVICE_NAMES))],
    config: ConfigOption = DEFAULT_CONFIG,
    port: Annotated[int | None, typer.Option(help="where to listen; default: tessera.services.<service>")] = None,
    bind: Annotated[list[str] | None, typer.Option(help="addresses to listen on, with --port")] = None,
    name: Annotated[str | None, typer.Option(help="of this process; default: the host's")] = None,
) -> None:
    """Run one service of a cluster, on Kafka, Redis and PostgreSQL, until SIGTERM."""
    from services.run import instance_name, listeners_of, run_service

    known = next((known for known in SERVICE_NAMES if known == service), None)
    if known is None:
        fail(f"there is no service {service}; there are {', '.join(SERVICE_NAMES)}")
    settings = read_config(config)
    set_up_logging(settings)
    own_name = instance_name(settings, name)

    def ready(urls: Sequence[str]) -> None:
        console.print(f"{own_name}: {known} answers on {', '.join(urls)}")

    try:
        listeners = listeners_of(settings, known, port, bind or ["127.0.0.1"])
    except CannotStart as error:
        fail(error)
    run_to_end(lambda: run_service(settings, known, listeners=listeners, name=own_name, ready=ready))


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
        fail(error)
    console.print(f"wrote {path}")


@app.command("check-config")
def check_config_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say whether a homeserver.yaml is right, key by key."""
    settings = read_config(config)
    for key in settings.unused_keys:
        console.print(f"[yellow]{key}[/yellow] has no effect here")
    console.print(f"{config}: a configuration for {settings.server_name}, nothing wrong with it")


@app.command("migrate")
def migrate_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Bring the databases' schemas up to date, and end."""
    from services.stores import open_stores

    settings = read_config(config)
    set_up_logging(settings)

    async def run() -> None:
        async with open_stores(settings, progress=show_progress):
            console.print("the schemas are up to date")

    run_to_end(run)


@app.command("register-user")
def register_user_command(
    server: Annotated[
        str | None, typer.Argument(help="the server's URL, or unix: and a socket's path; default: the first listener")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    user: Annotated[str | None, typer.Option("--user", "-u", help="localpart")] = None,
    password: Annotated[str | None, typer.Option("--password", "-p", help="asked for if it is not given")] = None,
    password_file: Annotated[Path | None, typer.Option(help="read the password from there")] = None,
    admin: Annotated[bool | None, typer.Option("--admin/--no-admin", "-a", help="a server administrator?")] = None,
    shared_secret: Annotated[str | None, typer.Option("--shared-secret", "-k", help="default: the config's")] = None,
) -> None:
    """Make an account on the running server."""
    settings = read_config(config) if shared_secret is None or server is None else None
    if shared_secret is None and settings is not None and settings.registration_shared_secret is not None:
        shared_secret = settings.registration_shared_secret.get_secret_value()
    if not shared_secret:
        fail(f"{config} has no registration_shared_secret; give one with --shared-secret")
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
        fail(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8")


def _register(server: str, secret: str, user: str, password: str, *, admin: bool) -> str:
    import httpx

    transport = httpx.HTTPTransport(uds=server.removeprefix(UNIX)) if server.startswith(UNIX) else None
    base = "http://localhost" if server.startswith(UNIX) else server.rstrip("/")
    url = f"{base}/_synapse/admin/v1/register"
    try:
        # The operator's own server, often with a certificate that only the outside knows.
        with httpx.Client(verify=not server.startswith("https://127."), timeout=60, transport=transport) as client:
            nonce = _answer(server, client.get(url))["nonce"]
            words = [nonce, user, password, "admin" if admin else "notadmin"]
            mac = hmac.new(secret.encode(), "\x00".join(words).encode(), hashlib.sha1).hexdigest()
            body = {"nonce": nonce, "username": user, "password": password, "admin": admin, "mac": mac}
            user_id: str = _answer(server, client.post(url, json=body))["user_id"]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"{server} does not answer: {error}")
    except (ValueError, KeyError, TypeError):
        fail(f"{server} answers, but not as a homeserver with registration by shared secret")
    return user_id


def _answer(server: str, reply: "httpx.Response") -> dict[str, Any]:
    """The body of a success; a refusal ends the command with the server's words."""
    body: dict[str, Any] = reply.json()
    if reply.status_code != 200:
        fail(f"{server} refuses: {body.get('error', reply.status_code)}")
    return body


def _ask_password() -> str:
    while True:
        password = getpass.getpass("Password: ")
        if password and password == getpass.getpass("Confirm password: "):
            return password
        errors.print("Empty, or not the same twice; once more.")


def _local_url(settings: Settings) -> str:
    listener = next((one for one in settings.listeners if "client" in one.resource_names()), settings.listeners[0])
    if listener.path is not None:
        return f"{UNIX}{listener.path}"
    scheme = "https" if listener.tls else "http"
    return f"{scheme}://127.0.0.1:{listener.port}"


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


if __name__ == "__main__":
    main()

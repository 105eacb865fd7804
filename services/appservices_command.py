"""`tessera appservices`: how telling application services stands, and what an operator does about it."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from services.command_line import DEFAULT_CONFIG, ConfigOption, console, fail, read_config, run_to_end
from services.stores import running_stores
from tessera.appservices import AppServices
from tessera.config import Settings, load_appservices
from tessera.storage import appservice_queue
from tessera.storage.appservice_queue import MAX_COUNTED, ServiceStatus

app = typer.Typer(help="Bridges and other application services.", no_args_is_help=True)

ServiceArgument = Annotated[str, typer.Argument(help="the id of its registration")]


@app.command("status")
def status_command(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """What waits for each application service, and which fail."""
    settings = read_config(config)
    run_to_end(lambda: _list(settings, load_appservices(settings)))


@app.command("retry")
def retry_command(service: ServiceArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Send to a service at once that is left alone because it failed."""
    settings = read_config(config)
    run_to_end(lambda: _retry(settings, service))


@app.command("drop")
def drop_command(service: ServiceArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Forget all that waits for a service that was removed from the configuration."""
    settings = read_config(config)
    if load_appservices(settings).find_by_id(service) is not None:
        fail(f"{service} is configured: remove it from app_service_config_files and restart first")
    run_to_end(lambda: _drop(settings, service))


async def _list(settings: Settings, services: AppServices) -> None:
    async with running_stores(settings, "appservices status") as stores, stores.accounts.reading() as tx:
        configured = [one.service_id for one in services.registrations]
        known = await appservice_queue.list_known(tx)
        statuses = await appservice_queue.list_status(tx, list(dict.fromkeys([*configured, *known])))
    table = Table("service", "state", "waiting", "oldest", "failures", "next try", "last success", "last error")
    for one in statuses:
        waiting = f"{MAX_COUNTED}+" if one.queued == MAX_COUNTED else str(one.queued)
        table.add_row(
            one.service_id,
            state_of(one, services),
            waiting,
            f"{one.oldest_seconds:.0f} s" if one.queued else "",
            str(one.failures),
            _when(one.due_at) if one.failures else "",
            _when(one.last_success),
            one.last_error or "",
        )
    console.print(table)


async def _retry(settings: Settings, service: str) -> None:
    async with running_stores(settings, "appservices retry") as stores, stores.accounts.reading() as tx:
        found = await appservice_queue.reset(tx, service)
    if not found:
        fail(f"{service}: nothing has ever been sent there")
    console.print(f"{service} is tried again now")


async def _drop(settings: Settings, service: str) -> None:
    async with running_stores(settings, "appservices drop") as stores, stores.accounts.transaction() as tx:
        if service not in await appservice_queue.list_known(tx):
            fail(f"{service}: nothing is known of it")
        await appservice_queue.drop(tx, service)
    console.print(f"what waited for {service} is forgotten")


def state_of(status: ServiceStatus, services: AppServices) -> str:
    """How a service stands, in a word or two."""
    registration = services.find_by_id(status.service_id)
    if registration is None:
        return "not configured"
    if registration.url is None:
        return "wants nothing"
    if status.failures:
        return "failing"
    return "sending" if status.queued else "up to date"


def _when(moment: datetime | None) -> str:
    return "never" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

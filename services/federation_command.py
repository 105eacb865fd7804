"""`tessera federation status`: how sending to other servers stands."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from services.command_line import DEFAULT_CONFIG, ConfigOption, console, fail, read_config, run_to_end
from services.stores import running_stores
from tessera.config import Settings
from tessera.storage import federation_destinations
from tessera.storage.federation_destinations import DestinationStatus

app = typer.Typer(help="Sending to other servers.", no_args_is_help=True)

MAX_LISTED = 1_000
MAX_ROOMS = 100


@app.command("status")
def status_command(
    server: Annotated[str | None, typer.Argument(help="one server, in detail")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    failing: Annotated[bool, typer.Option("--failing", help="only those that do not take what they are sent")] = False,
) -> None:
    """Which servers are sent to, what waits for them, and which fail."""
    settings = read_config(config)
    if server is None:
        run_to_end(lambda: _list(settings, failing=failing))
        return
    try:
        name = parse_server_name(server)
    except InvalidIdentifier as error:
        fail(f"{server}: {error}")
    run_to_end(lambda: _show(settings, name))


async def _list(settings: Settings, *, failing: bool) -> None:
    async with running_stores(settings, "federation status") as stores, stores.accounts.reading() as tx:
        statuses, total = await federation_destinations.list_statuses(
            tx, order_by="failure_ts", start=0, limit=MAX_LISTED
        )
    shown = [one for one in statuses if one.failures or not failing]
    table = Table("server", "state", "failures", "next try", "last success", "last error")
    for one in shown:
        retry = _when(one.due_at) if one.failures else ""
        table.add_row(
            one.destination, state_of(one), str(one.failures), retry, _when(one.last_success), one.last_error or ""
        )
    console.print(table)
    console.print(f"{len(shown)} of {total} servers")


async def _show(settings: Settings, server: ServerName) -> None:
    async with running_stores(settings, "federation status") as stores, stores.accounts.reading() as tx:
        status = await federation_destinations.find_status(tx, server)
        pdus, edus, rooms = await federation_destinations.count_rows(tx, server)
        queued = await federation_destinations.list_queued_rooms(tx, server, MAX_ROOMS)
    if status is None:
        fail(f"{server}: nothing has ever been sent there")
    console.print(f"{server}: {state_of(status)}")
    console.print(f"waiting: {pdus} events, {edus} EDUs, {rooms} rooms to catch up with")
    console.print(f"last success: {_when(status.last_success)}; last try: {_when(status.last_attempt)}")
    if status.failures:
        console.print(f"failing since {_when(status.failing_since)}, {status.failures} times: {status.last_error}")
        console.print(f"next try: {_when(status.due_at)}")
    for room_id in queued:
        console.print(f"  {room_id}")


def state_of(status: DestinationStatus) -> str:
    """One word for how a server stands."""
    if status.catching_up:
        return "silent"
    if status.failures:
        return "failing"
    return "sending" if status.pending else "up to date"


def _when(moment: datetime | None) -> str:
    return "never" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

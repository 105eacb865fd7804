"""`tessera doctor`: whether other servers reach this one, and whether it reaches them."""

from typing import Annotated

import typer
from rich.markup import escape

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from services.command_line import DEFAULT_CONFIG, FAILED, ConfigOption, console, fail, read_config, run_to_end
from tessera.clock import SystemClock

_SHOWN = {
    "good": "[green]ok[/green]     ",
    "note": "[dim]note[/dim]   ",
    "warning": "[yellow]warning[/yellow]",
    "failure": "[red]failure[/red]",
}


def doctor_command(
    peers: Annotated[list[str] | None, typer.Argument(help="servers that this one should reach")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Look at this server as others see it, and at peers; run it where the server runs. Exits with 1 after a failure.

    Names, well-known and SRV, addresses, certificates, keys and the clock are looked at. A peer is also asked
    something, which shows whether it believes our signature, and so whether it reaches us.
    """
    settings = read_config(config)
    names: list[ServerName] = []
    for peer in peers or ():
        try:
            names.append(parse_server_name(peer))
        except InvalidIdentifier as error:
            fail(f"{peer}: {error}")
    failures = 0

    async def run() -> None:
        nonlocal failures
        from services.doctor import opened_doctor

        async with opened_doctor(settings, SystemClock()) as doctor:
            async for server, finding in doctor.findings(names):
                level = finding.level.value
                failures += level == "failure"
                console.print(f"{_SHOWN[level]} {escape(server)}  {escape(finding.step)}: {escape(finding.text)}")

    run_to_end(run)
    if failures:
        raise typer.Exit(FAILED)

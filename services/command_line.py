"""What the commands share: where they write, how they read the configuration, and how they fail."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from tessera.config import ConfigError, Settings, read_settings
from tessera.embedded_postgres import EmbeddedPostgresError
from tessera.logging import configure_logging
from tessera.service import CannotStart
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.migrations import MigrationError
from tessera.storage.placement import PlacementMismatch

log = structlog.get_logger(__name__)
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="homeserver.yaml")]
DEFAULT_CONFIG = Path("data/homeserver.yaml")
# Whatever an operator can mend is one line and this status.
FAILED = 1
_ONE_LINE = (CannotStart, EmbeddedPostgresError, DatabaseUnavailable, MigrationError, PlacementMismatch)


def read_config(path: Path) -> Settings:
    """The settings of a file and the environment; ends the command if they are wrong."""
    try:
        return read_settings(path, os.environ, check_files=True)
    except ConfigError as error:
        fail(error)


def set_up_logging(settings: Settings) -> None:
    """Log as the settings say, first of all which of them have no effect; ends the command if that cannot be."""
    try:
        configure_logging(settings)
    except ConfigError as error:
        fail(error)
    if settings.unused_keys:
        log.warning("settings without effect", keys=settings.unused_keys)


def show_progress(text: str) -> None:
    """One line for a step that takes its time."""
    console.print(f"[dim]·[/dim] {text}")


def run_to_end(coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on an event loop; what an operator can mend ends the command with one line."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(coroutine())
    except _ONE_LINE as error:
        fail(error)
    except BaseExceptionGroup as group:
        expected, rest = group.split(_ONE_LINE)
        if expected is None or rest is not None:
            raise
        fail(_first_of(expected))


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def fail(error: BaseException | str) -> NoReturn:
    """End the command with one line."""
    errors.print("[red]tessera:[/red]", escape(str(error)))
    raise typer.Exit(FAILED)

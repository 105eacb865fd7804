"""`tessera cluster`: a whole small cluster on one machine."""

import os
import shutil
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from services.cluster.plan import Counts, count_of, free_ports, plan_processes
from services.command_line import (
    DEFAULT_CONFIG,
    ConfigOption,
    console,
    fail,
    read_config,
    run_to_end,
    set_up_logging,
    show_progress,
)
from tessera.clock import SystemClock
from tessera.config import ConfigError, Settings, read_settings
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.service import CannotStart

if TYPE_CHECKING:
    from services.cluster.supervisor import Cluster

SPARE_CONNECTIONS = 30  # for migrations, commands and people
# On one machine, beside everything else.
POSTGRES_OPTIONS = {"shared_buffers": "128MB", "max_wal_size": "2GB"}


def cluster_command(
    config: ConfigOption = DEFAULT_CONFIG,
    gateways: Annotated[int, typer.Option(min=1)] = 2,
    writers: Annotated[int, typer.Option(min=1)] = 3,
    syncs: Annotated[int, typer.Option(min=1)] = 2,
    media: Annotated[int, typer.Option(min=0)] = 1,
    projectors: Annotated[int, typer.Option(min=0)] = 1,
    federation_ins: Annotated[int, typer.Option(min=0)] = 1,
    federation_outs: Annotated[int, typer.Option(min=0)] = 1,
    pushes: Annotated[int, typer.Option(min=0)] = 1,
    appservices: Annotated[int | None, typer.Option(min=0, help="by default 1 where any are configured")] = None,
    dev_brokers: Annotated[bool, typer.Option("--dev-brokers", help="start a Kafka and a Valkey for trials")] = False,
    proxy: Annotated[str, typer.Option(help="auto (nginx if it is installed), nginx or own")] = "auto",
    info_file: Annotated[Path | None, typer.Option(help="write there what runs where, as JSON")] = None,
) -> None:
    """Run a small cluster on this machine, with a proxy where the configuration's listener is, until Ctrl-C."""
    settings = read_config(config)
    set_up_logging(settings)
    nginx = _nginx(proxy)
    if appservices is None:
        appservices = 1 if settings.app_service_config_files else 0
    counts = Counts(gateways, writers, syncs, media, projectors, federation_ins, federation_outs, pushes, appservices)
    with ExitStack() as stack:
        environment = _brokers(stack, settings) if dev_brokers else {}
        run_to_end(lambda: _run(config.absolute(), environment, counts, nginx, info_file))


def _nginx(proxy: str) -> str | None:
    if proxy not in ("auto", "nginx", "own"):
        fail("--proxy is auto, nginx or own")
    found = shutil.which("nginx") if proxy != "own" else None
    if found is None and proxy == "nginx":
        fail("nginx is not installed")
    return found


def _brokers(stack: ExitStack, settings: Settings) -> dict[str, str]:
    from services.cluster.dev_brokers import dev_brokers

    own = settings.tessera
    try:
        return stack.enter_context(
            dev_brokers(kafka=own.kafka is None, redis=own.redis is None, progress=show_progress)
        )
    except CannotStart as error:
        fail(error)


async def _run(
    config: Path, environment: dict[str, str], counts: Counts, nginx: str | None, info_file: Path | None
) -> None:
    from services.cluster.supervisor import supervise
    from services.stores import open_stores
    from services.topics_command import settle_topics

    async with AsyncExitStack() as stack:
        settings = _with(config, environment)
        total = count_of(counts)
        if settings.accounts_dsn is None:
            environment = environment | {"TESSERA_ACCOUNTS_DSN": await _postgres(stack, settings, total)}
            settings = _with(config, environment)
        if settings.tessera.kafka is None or settings.tessera.redis is None:
            raise CannotStart(
                "a cluster needs tessera.kafka.bootstrap_servers and tessera.redis.url, or --dev-brokers for a trial"
            )
        async with open_stores(settings, progress=show_progress):
            pass  # the schemas are up to date now; each process opens pools of its own
        await settle_topics(settings.tessera.kafka, settings.tessera.partitions, make=True, say=lambda _text: None)
        planned = plan_processes(config, counts, free_ports(total), settings.data_dir / "logs")
        show_progress(f"starting {total} processes; their logs are in {settings.data_dir / 'logs'}")
        await supervise(
            settings,
            planned,
            {**os.environ, **environment},
            SystemClock(),
            nginx=nginx,
            folder=settings.data_dir / "nginx",
            info_file=info_file,
            ready=_show,
        )


def _with(config: Path, environment: dict[str, str]) -> Settings:
    try:
        return read_settings(config, {**os.environ, **environment}, check_files=True)
    except ConfigError as error:
        raise CannotStart(str(error)) from error


async def _postgres(stack: AsyncExitStack, settings: Settings, processes: int) -> str:
    show_progress(f"starting PostgreSQL in {settings.data_dir / 'postgres'}")
    connections = processes * settings.pool.max_size + SPARE_CONNECTIONS
    options = POSTGRES_OPTIONS | {"max_connections": str(connections)}
    postgres = EmbeddedPostgres(settings.data_dir / "postgres", settings=options)
    await postgres.start()
    stack.push_async_callback(postgres.stop)
    return postgres.dsn()


def _show(cluster: "Cluster") -> None:
    table = Table("process", "pid", "answers on", "state", box=None, pad_edge=False)
    for child in cluster.children:
        table.add_row(child.planned.name, str(child.pid or ""), child.planned.url, child.state.value)
    console.print()
    console.print(table)
    console.print()
    console.print(f"[bold]Tessera[/bold] serves on {', '.join(cluster.urls)}; stop with Ctrl-C")

"""Bring a database's schema up to what this release needs.

Alembic knows the revisions and turns them into SQL; asyncpg runs each in a transaction of its
own, with a short lock_timeout so that a migration never queues in front of live traffic.

A revision expands the schema: processes of the release before go on with it, and may be started
again. One that takes something away, a release later, says `contracts = True`; from then on
releases that do not know it refuse to start.
"""

import io
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import structlog

from tessera.storage.database import unreachable

if TYPE_CHECKING:
    from alembic.script import Script

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_SECONDS = 10.0
LOCK_TIMEOUT_MS = 5_000
STARTERS_TIMEOUT_MS = 600_000  # how long one waits for another that is migrating a large database
STARTERS_LOCK = 0x7E55E8A  # the advisory lock under which one of several starters migrates


class Tree(Enum):
    """The two kinds of store; the value is the schema's name and the folder's."""

    ROOMS = "rooms"
    ACCOUNTS = "accounts"


class MigrationError(Exception):
    """The schema cannot be brought up to date; the text says why in one line."""


class NewerSchema(MigrationError):
    """The database was migrated by a newer release, which this one does not understand."""


async def migrate(dsn: str, tree: Tree, *, progress: Callable[[str], None] | None = None) -> list[str]:
    """Run what is missing, oldest first; several processes may do so at once.

    Returns:
        The revisions that were run.

    Raises:
        NewerSchema: the database is ahead of this code.
        MigrationError: a revision failed; those before it are kept. Or another process migrates for too long.
        DatabaseUnavailable: it cannot be reached or refuses us.
    """
    connection = await _connect(dsn)
    try:
        await _take_starters_lock(connection, tree)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {tree.value}")
        await _prepare_table(connection, tree)
        pending = await _pending(connection, tree)
        for script in _scripts(tree, pending):
            if progress is not None:
                progress(f"{tree.value} {script.revision}: {(script.doc or '').splitlines()[0]}")
            await _run(connection, tree, script)
        return pending
    finally:
        await connection.close()


async def pending_revisions(dsn: str, tree: Tree) -> list[str]:
    """What `migrate` would run. Raises NewerSchema or DatabaseUnavailable."""
    connection = await _connect(dsn)
    try:
        return await _pending(connection, tree)
    finally:
        await connection.close()


async def require_current(dsn: str, tree: Tree) -> None:
    """Refuse to work on a schema that is behind or ahead.

    Raises:
        MigrationError, NewerSchema, DatabaseUnavailable.
    """
    if pending := await pending_revisions(dsn, tree):
        raise MigrationError(f"the schema `{tree.value}` lacks {', '.join(pending)}: run `tessera migrate`")


def known_revisions(tree: Tree) -> list[str]:
    """The revisions of this release, oldest first: the numbers in front of their files' names."""
    folder = Path(__file__).parent / tree.value / "versions"
    return sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))


async def _connect(dsn: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise unreachable(dsn, error) from error


async def _take_starters_lock(connection: asyncpg.Connection, tree: Tree) -> None:
    """Wait for other starters; the lock ends with the connection."""
    await connection.execute(f"SET lock_timeout = {STARTERS_TIMEOUT_MS}")
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", STARTERS_LOCK)
    except asyncpg.LockNotAvailableError as error:
        raise MigrationError(
            f"another process has been migrating `{tree.value}` for too long; see what it does"
        ) from error
    await connection.execute("RESET lock_timeout")


async def _prepare_table(connection: asyncpg.Connection, tree: Tree) -> None:
    """Make the table of revisions, and note of each whether the release before can work on it."""
    table = f"{tree.value}.schema_revision"
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {table} (revision text PRIMARY KEY,"
        " applied_at timestamptz NOT NULL DEFAULT now(), expands boolean NOT NULL DEFAULT false)"
    )
    if not await _has_expands(connection, tree):  # made before this was noted
        await connection.execute(f"ALTER TABLE {table} ADD COLUMN expands boolean NOT NULL DEFAULT false")
        known = [script.revision for script in _scripts(tree, known_revisions(tree)) if _expands(script)]
        await connection.execute(f"UPDATE {table} SET expands = true WHERE revision = ANY($1)", known)  # noqa: S608  constant text


async def _has_expands(connection: asyncpg.Connection, tree: Tree) -> bool:
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM information_schema.columns WHERE table_schema = $1"
        " AND table_name = 'schema_revision' AND column_name = 'expands')",
        tree.value,
    )
    return found


def _expands(script: "Script") -> bool:
    """Whether processes that do not know a revision can go on with it: unless it says `contracts = True`."""
    return not getattr(script.module, "contracts", False)


async def _pending(connection: asyncpg.Connection, tree: Tree) -> list[str]:
    applied: dict[str, bool] = {}
    if await connection.fetchval("SELECT to_regclass($1)", f"{tree.value}.schema_revision"):
        expands = "expands" if await _has_expands(connection, tree) else "false"
        rows = await connection.fetch(f"SELECT revision, {expands} FROM {tree.value}.schema_revision")  # noqa: S608  constant text
        applied = {row[0]: row[1] for row in rows}
    known = known_revisions(tree)
    if ahead := applied.keys() - set(known):
        newest = known[-1] if known else "none"
        if contracting := [revision for revision in ahead if not applied[revision]]:
            raise NewerSchema(
                f"the schema `{tree.value}` has revision {max(contracting)}, this release knows up to"
                f" {newest}: start the newer release, or restore a backup"
            )
        log.warning("the schema is a newer release's, which this one can work on", schema=tree.value, known=newest)
    return [revision for revision in known if revision not in applied]


def _scripts(tree: Tree, revisions: Sequence[str]) -> "list[Script]":
    if not revisions:
        return []
    # Only now: Alembic and SQLAlchemy take 20 MiB that a process with nothing to migrate need not spend.
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / tree.value))
    config.set_main_option("path_separator", "os")
    scripts = {script.revision: script for script in ScriptDirectory.from_config(config).walk_revisions()}
    return [scripts[revision] for revision in revisions]


async def _run(connection: asyncpg.Connection, tree: Tree, script: "Script") -> None:
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            await connection.execute(_sql_of(script))
            await connection.execute(
                f"INSERT INTO {tree.value}.schema_revision (revision, expands) VALUES ($1, $2)",  # noqa: S608 -- an enum
                script.revision,
                _expands(script),
            )
    except asyncpg.PostgresError as error:
        raise MigrationError(f"revision {script.revision} of `{tree.value}` failed: {error}") from error


def _sql_of(script: "Script") -> str:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    buffer = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": buffer, "transactional_ddl": False}
    )
    with Operations.context(context):
        script.module.upgrade()
    return buffer.getvalue()

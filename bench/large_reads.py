"""How long the heavy reads take on a large server, and whether PostgreSQL reads a large table from end to end for one.

    .venv/bin/python -m bench.large_reads DIR [--requests 200] [--plans] [--only members]

DIR is what `bench.large_database` made. One client asks, one request at a time; the times are from the request to the
last byte of the answer. The first request of all is told apart. "Others" is the longest time that the server kept
another client waiting for something small meanwhile. `--plans` has auto_explain write the plan of every statement
instead, and lists the sequential scans of tables with more than 10,000 rows.
"""

import argparse
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import uvloop

from bench.bystander import Bystander, standing_by
from bench.large_database import ASKERS
from tessera.embedded_postgres import EmbeddedPostgres
from tests.fixtures.server_process import ServerProcess

LARGE_ROWS = 10_000
AIM_P99_MS = 100
_SEQ_SCAN = re.compile(r"Seq Scan on (\w+)")
PLANS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
}


@dataclass(frozen=True)
class Read:
    """One kind of request; `path` gets the number of the request and a room of the asker."""

    name: str
    method: str
    path: Callable[[int, "Rooms"], str]
    body: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class Rooms:
    """Rooms that every asker is in, and an event in one of them."""

    large: str
    space: str
    ordinary: str
    event: str


def _room(room: str, rest: str, version: str = "v3") -> str:
    return f"/_matrix/client/{version}/rooms/{quote(room)}/{rest}"


_LAZY = quote(json.dumps({"lazy_load_members": True}))
_SYNC = quote(json.dumps({"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 20}}}))
_WORDS = ("ba", "ti", "mo", "ku", "la", "ne", "ri", "so")


def _search(number: int) -> Any:
    term = _WORDS[number % len(_WORDS)] + _WORDS[number // len(_WORDS) % len(_WORDS)]
    events = {"search_term": term, "keys": ["content.body"], "order_by": ("rank", "recent")[number % 2]}
    return {"search_categories": {"room_events": events}}


READS = (
    Read("publicRooms", "POST", lambda _n, _r: "/_matrix/client/v3/publicRooms", lambda _n: {"limit": 50}),
    Read(
        "publicRooms, term",
        "POST",
        lambda _n, _r: "/_matrix/client/v3/publicRooms",
        lambda n: {"limit": 50, "filter": {"generic_search_term": _WORDS[n % len(_WORDS)]}},
    ),
    Read(
        "user directory",
        "POST",
        lambda _n, _r: "/_matrix/client/v3/user_directory/search",
        lambda n: {"search_term": f"user {n}", "limit": 20},
    ),
    Read("search", "POST", lambda _n, _r: "/_matrix/client/v3/search", _search),
    Read("hierarchy of 500 rooms", "GET", lambda _n, r: _room(r.space, "hierarchy?limit=50", "v1")),
    Read("members of the large room", "GET", lambda _n, r: _room(r.large, "members")),
    Read("the same, who joined", "GET", lambda _n, r: _room(r.large, "joined_members")),
    Read("messages, lazy", "GET", lambda _n, r: _room(r.large, f"messages?dir=b&limit=50&filter={_LAZY}")),
    Read("context", "GET", lambda _n, r: _room(r.ordinary, f"context/{quote(r.event)}?limit=20")),
    Read("relations", "GET", lambda _n, r: _room(r.ordinary, f"relations/{quote(r.event)}?limit=50", "v1")),
    Read("threads", "GET", lambda _n, r: _room(r.ordinary, "threads?limit=20", "v1")),
    Read("summary", "GET", lambda _n, r: f"/_matrix/client/v1/room_summary/{quote(r.large)}"),
    Read("initial sync, lazy", "GET", lambda _n, _r: f"/_matrix/client/v3/sync?timeout=0&filter={_SYNC}"),
)


class Asker:
    """One client, each request by another of the users who have a session."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session, self._base_url = session, base_url

    async def ask(self, number: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body."""
        headers = {"Authorization": f"Bearer token{number % ASKERS}"}
        async with self._session.request(method, self._base_url + path, json=body, headers=headers) as reply:
            return reply.status, await reply.read()

    async def find_rooms(self, folder: Path) -> Rooms:
        """The rooms that the loader noted, and the event with most of what may relate to it: an early message."""
        large, space, ordinary, *_ = (folder / "rooms.txt").read_text().split()
        _, body = await self.ask(0, "GET", _room(ordinary, "messages?dir=f&limit=50"))
        messages = [one for one in json.loads(body)["chunk"] if one["type"] == "m.room.message"]
        return Rooms(large, space, ordinary, messages[0]["event_id"])


@asynccontextmanager
async def running(folder: Path, settings: dict[str, str]) -> AsyncIterator[str]:
    """The server in the folder, as a process of its own."""
    postgres = EmbeddedPostgres(folder / "postgres", settings=settings)
    await postgres.start()
    server = ServerProcess(folder, tessera={"data_dir": str(folder), "accounts_dsn": postgres.dsn()})
    try:
        await server.start()
        yield server.base_url
    finally:
        await server.stop()
        await postgres.stop()


async def measure(folder: Path, requests: int, only: str) -> None:
    """The table of times."""
    async with running(folder, {}) as base_url, aiohttp.ClientSession() as session:
        asker = Asker(session, base_url)
        rooms = await asker.find_rooms(folder)
        with standing_by(base_url) as bystander:
            await _measure_reads(asker, rooms, bystander, requests, only)


async def _measure_reads(asker: Asker, rooms: Rooms, bystander: Bystander, requests: int, only: str) -> None:
    print(f"| read | first ms | p50 ms | p99 ms | others ms | KiB |   (aim: p99 under {AIM_P99_MS} ms)")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    for read in READS:
        if only not in read.name:
            continue
        times, size = [], 0
        bystander.start()
        for number in range(requests + ASKERS):
            body = read.body(number) if read.body else None
            started = time.perf_counter()
            status, answer = await asker.ask(number, read.method, read.path(number, rooms), body)
            if status != 200:
                raise SystemExit(f"{read.name}: answered {status}: {answer[:120]!r}")
            times.append((time.perf_counter() - started) * 1000)
            size += len(answer)
        others = bystander.stop()
        warm = sorted(times[ASKERS:])  # the first of each user is not a warm one
        p99 = warm[int(len(warm) * 0.99)]
        kib = size / len(times) / 1024
        print(
            f"| {read.name} | {times[0]:.1f} | {statistics.median(warm):.1f} | {p99:.1f} | {others:.1f} | {kib:.0f} |",
            flush=True,
        )


async def explain(folder: Path, only: str) -> None:
    """The sequential scans of large tables."""
    log = folder / "postgres" / "postgresql.log"
    async with running(folder, PLANS) as base_url, aiohttp.ClientSession() as session:
        asker = Asker(session, base_url)
        rooms = await asker.find_rooms(folder)
        large = await _large_tables(folder)
        for read in READS:
            if only not in read.name:
                continue
            log = _log_of(folder)
            before = log.stat().st_size
            for number in range(5):
                await asker.ask(number, read.method, read.path(number, rooms), read.body(number) if read.body else None)
            with log.open("rb") as lines:
                lines.seek(before)
                plans = lines.read().decode(errors="replace")
            found = Counter(name for name in _SEQ_SCAN.findall(plans) if name in large)
            print(f"{read.name}: {plans.count('Query Text:')} statements, sequential scans: {dict(found) or 'none'}")


def _log_of(folder: Path) -> Path:
    return max((folder / "postgres").rglob("*.log"), key=lambda path: path.stat().st_mtime)


async def _large_tables(folder: Path) -> set[str]:
    from tessera.storage.database import Database

    dsn = EmbeddedPostgres(folder / "postgres").find_running_dsn()
    assert dsn is not None
    database = await Database.connect(dsn, max_size=1)
    try:
        rows = await database.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples > $1", LARGE_ROWS)
        return {row[0] for row in rows}
    finally:
        await database.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    uvloop.run(explain(given.folder, given.only) if given.plans else measure(given.folder, given.requests, given.only))


if __name__ == "__main__":
    main()

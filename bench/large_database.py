"""A large server, made by the code that a server runs: accounts through the storage layer, rooms through the writer.

    .venv/bin/python -m bench.large_database DIR [--users 100000] [--rooms 20000] [--events 2000000] [--members 50000]

DIR then holds a server that `bench.large_reads DIR` starts and asks, `tessera serve --config DIR/homeserver.yaml` too.
The same arguments make the same rooms with the same members and texts. PostgreSQL runs without fsync meanwhile.
"""

import argparse
import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from pydantic import SecretStr
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from matrixcore.identifiers import RoomId, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.dependencies import GatewayDeps
from services.gateway.new_room import parse_new_room
from services.gateway.room_changes import RoomUnavailable, Session
from services.serve import run_services
from services.stores import open_stores
from tessera.clock import SystemClock
from tessera.commands import NewEvent
from tessera.config import read_settings
from tessera.embedded_postgres import EmbeddedPostgres
from tessera.garbage_collector import settle_garbage_collector
from tessera.storage.access_tokens import NewTokens, add_session, hash_token
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.users import add_user
from tests.conftest import FORGETFUL
from tests.fixtures.server_process import ServerProcess

SERVER = "chat.example"
ROOM_VERSION = "12"
AT_ONCE = 48
RETRY_SECONDS = 1.0
SPACE_CHILDREN = 500
MEMBERS = (2, 3, 3, 4, 5, 6, 8, 10, 15, 30, 60)
PUBLIC_SHARE = 0.2
WORDS = 5_000
# Who asks in the measurements: their tokens are their names.
ASKERS = 20


@dataclass(frozen=True)
class Size:
    """How much is made; `members` is of the largest room."""

    users: int
    rooms: int
    events: int
    members: int


class Texts:
    """Words as a language has them: a few of them everywhere, most of them rare."""

    def __init__(self, seed: random.Random) -> None:
        letters = "bdfgklmnprstvz"
        self._words = [
            "".join(seed.choice(letters) + seed.choice("aeiou") for _ in range(seed.randint(1, 4)))
            for _ in range(WORDS)
        ]
        self._weights = [1 / (rank + 2) for rank in range(WORDS)]
        self._seed = seed

    def some(self, low: int, high: int) -> str:
        """So many words."""
        return " ".join(self._seed.choices(self._words, self._weights, k=self._seed.randint(low, high)))


def user_of(number: int) -> UserId:
    """The number-th account."""
    return UserId(f"@user{number}:{SERVER}")


async def make_users(accounts: Database, count: int, done: Callable[[int], None]) -> None:
    """The accounts, and sessions of the first few, whose access tokens are `token<number>`."""
    for first in range(0, count, 1_000):
        async with accounts.transaction() as tx:
            for number in range(first, min(first + 1_000, count)):
                name = f"User {number}"
                await add_user(tx, user_of(number), password_hash=None, displayname=name, now_ms=1)
                if number < ASKERS:
                    tokens = NewTokens(hash_token(f"token{number}"), None)
                    await add_session(tx, user_of(number), f"DEVICE{number}", None, tokens, now_ms=1)
        done(min(first + 1_000, count))


class RoomLoader:
    """Makes rooms through the writer, as the gateway would."""

    def __init__(self, gateway: GatewayDeps, size: Size, done: Callable[[int], None]) -> None:
        self._gateway, self._size, self._done = gateway, size, done
        self._seed = random.Random(1)
        self._texts = Texts(self._seed)
        self.events = 0
        self.rooms: list[tuple[RoomId, list[int]]] = []

    async def make_rooms(self) -> None:
        """All rooms with their members: the first is the largest, the second a space of hundreds."""
        plans = [self._plan(number) for number in range(self._size.rooms)]
        made: dict[int, RoomId] = {}

        async def make(number: int) -> None:
            room, members = plans[number]
            room_id = made[number] = await self._create(members[0], room)
            self._count(8)
            for member in members[1:]:
                await self._join(room_id, member)

        await self._side_by_side(make(number) for number in range(2, self._size.rooms))
        # The large one alone: its members come one behind the other.
        room, members = plans[0]
        made[0] = await self._create(members[0], room)
        await self._side_by_side(self._join(made[0], member) for member in members[1:])
        await self._make_space(plans[1], made)
        self.rooms = [(made[number], plans[number][1]) for number in range(self._size.rooms)]

    async def send_messages(self) -> None:
        """What is missing of the events: messages, replies, reactions, edits."""
        left = self._size.events - self.events
        each = max(left // len(self.rooms), 1)

        async def talk(room_id: RoomId, members: list[int], count: int) -> None:
            sent: list[str] = []
            for _ in range(count):
                sender = self._seed.choice(members)
                sent.append(await self._append(room_id, sender, *self._said(sent)))
                del sent[:-50]

        # A few rooms have most of the talk.
        shares = [each // 2 if number % 10 else each * 11 // 2 for number in range(len(self.rooms))]
        await self._side_by_side(
            talk(room_id, members[:200], count) for (room_id, members), count in zip(self.rooms, shares, strict=True)
        )

    def _plan(self, number: int) -> tuple[dict[str, Any], list[int]]:
        users = self._size.users
        count = {0: self._size.members, 1: ASKERS}.get(number) or self._seed.choice(MEMBERS)
        others = self._seed.sample(range(users), min(count, users))
        askers = list(range(ASKERS)) if number < 2 or number % 100 == 2 else []
        members = list(dict.fromkeys([*askers, *others]))[: max(count, len(askers))]
        room: dict[str, Any] = {"name": self._texts.some(1, 3), "topic": self._texts.some(3, 10)}
        is_public = number < SPACE_CHILDREN + 2 or self._seed.random() < PUBLIC_SHARE
        room["preset"] = "public_chat" if is_public else "private_chat"
        if is_public:
            room["visibility"] = "public"
        else:
            room["initial_state"] = [{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "public"}}]
        if number == 1:
            room["creation_content"] = {"type": "m.space"}
        return room, members

    async def _create(self, creator: int, room: Mapping[str, Any]) -> RoomId:
        new = parse_new_room(room, user_of(creator), ROOM_VERSIONS[ROOM_VERSION], None)
        return await self._gateway.room_maker.create(Session(user_of(creator)), new)

    async def _make_space(self, plan: tuple[dict[str, Any], list[int]], made: dict[int, RoomId]) -> None:
        room, members = plan
        space = made[1] = await self._create(members[0], room)
        for member in members[1:]:
            await self._join(space, member)
        for number in range(2, min(SPACE_CHILDREN + 2, self._size.rooms)):
            await self._append(space, members[0], "m.space.child", {"via": [SERVER]}, state_key=made[number])

    def _said(self, sent: list[str]) -> tuple[str, dict[str, Any]]:
        kind = self._seed.random()
        body = self._texts.some(3, 25)
        if not sent or kind < 0.8:
            return "m.room.message", {"msgtype": "m.text", "body": body}
        target = self._seed.choice(sent)
        if kind < 0.88:
            return "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": "+1"}}
        if kind < 0.95:
            thread = {"rel_type": "m.reference", "event_id": target}
            return "m.room.message", {"msgtype": "m.text", "body": body, "m.relates_to": thread}
        return "m.room.message", {
            "msgtype": "m.text",
            "body": body,
            "m.relates_to": {"m.in_reply_to": {"event_id": target}},
        }

    async def _join(self, room_id: RoomId, member: int) -> None:
        content = {"membership": "join", "displayname": f"User {member}"}
        await self._append(room_id, member, "m.room.member", content, state_key=user_of(member))

    async def _append(
        self, room_id: RoomId, sender: int, event_type: str, content: dict[str, Any], *, state_key: str | None = None
    ) -> str:
        event = NewEvent(event_type, state_key, content)
        while True:
            try:
                event_id = await self._gateway.rooms.append(room_id, Session(user_of(sender)), event)
            except (DatabaseUnavailable, RoomUnavailable):  # the machine is busy: a client tries again, too
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._count(1)
            return event_id or ""

    def _count(self, events: int) -> None:
        self.events += events
        if self.events % 100 < events:
            self._done(self.events)

    async def _side_by_side(self, work: Iterable[Awaitable[None]]) -> None:
        waiting = iter(work)

        async def worker() -> None:
            for one in waiting:
                await one

        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(worker())


@asynccontextmanager
async def running_gateway(folder: Path) -> AsyncIterator[GatewayDeps]:
    """All services of one process on a PostgreSQL in the folder that may forget."""
    if not (folder / "homeserver.yaml").exists():
        ServerProcess(folder)
    settings = read_settings(folder / "homeserver.yaml", {})
    postgres = EmbeddedPostgres(folder / "postgres", settings=FORGETFUL)
    await postgres.start()
    try:
        where = {"accounts_dsn": SecretStr(postgres.dsn()), "allow_unsafe_postgres": True}
        own = settings.tessera.model_copy(update=where)
        settings = settings.model_copy(update={"tessera": own})
        async with (
            open_stores(settings, progress=print) as stores,
            run_services(settings, stores, SystemClock()) as hosted,
        ):
            gateway = hosted.state["gateway"]
            assert isinstance(gateway, GatewayDeps)
            yield gateway
    finally:
        await postgres.stop()


async def make(folder: Path, size: Size) -> None:
    """The whole server in an empty folder."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        users = progress.add_task("accounts", total=size.users)
        events = progress.add_task("events", total=size.events)
        async with running_gateway(folder) as gateway:
            settle_garbage_collector()
            await make_users(gateway.accounts, size.users, lambda done: progress.update(users, completed=done))
            loader = RoomLoader(gateway, size, lambda done: progress.update(events, completed=done))
            await loader.make_rooms()
            await loader.send_messages()
            progress.update(events, completed=loader.events)
            await _settled(gateway)
    (folder / "rooms.txt").write_text("\n".join(room_id for room_id, _ in loader.rooms[:50]) + "\n")


async def _settled(gateway: GatewayDeps) -> None:
    """PostgreSQL knows what it has, as it would after a day."""
    shards = gateway.shards
    databases = [shards.of_partition(shards.partitions_of(name)[0]) for name in shards.names]
    for database in {gateway.accounts, *databases}:
        await database.execute("ANALYZE")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("users", 100_000), ("rooms", 20_000), ("events", 2_000_000), ("members", 50_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if (given.folder / "rooms.txt").exists():
        parser.error(f"{given.folder} holds a server already")
    uvloop.run(make(given.folder, Size(given.users, given.rooms, given.events, given.members)))


if __name__ == "__main__":
    main()

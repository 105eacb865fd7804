"""One run: a cluster, clients and faults, all from one seed."""

import asyncio
import gc
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from database_clock import keep_time, set_up_clock
from laws import (
    WRITER_TRACING,
    check_client,
    check_projections,
    check_shared_room,
    check_stores,
    list_unsettled,
    require,
)
from lock_watch import LockWatch
from numbering import begin_numbers, number_objects
from sim_clients import Ledger, Listener, Talker
from sim_cluster import KINDS, PARTITIONS, SERVER, SimCluster, Strike
from sim_process import task_factory
from virtual_loop import VirtualLoop

from matrixcore.identifiers import RoomId, UserId
from services.sync.polls import Poll
from services.sync.room_tails import RoomTail
from services.sync.user_states import UserState
from tessera.storage import users
from tessera.storage.database import Database
from tessera.storage.partitions import add_partitions
from tessera.storage.shards import RoomShards
from tests.fixtures.epoch_trace import TRACING

USERS = [f"@{name}:{SERVER}" for name in ("ann", "ben", "cat")]
COUNTS = {"writer": 2, "gateway": 2, "sync": 2, "projector": 1, "receiver": 1}
ROOMS = 2
ACTIONS = 10
CHATS = 4
# In the room of both servers nobody's right depends on what came first.
OPEN_LEVELS = {"events": {"m.room.topic": 0, "m.room.name": 0}}
LATE_SECONDS = 15.5  # after the last fault every message that is still under way has come
SETTLE_SECONDS = 120.0
LOOK_SECONDS = 1.0
MAX_SECONDS = 3_600.0
number_objects(Poll, RoomTail, UserState)


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in a run."""

    seed: int
    virtual_seconds: float
    accepted: int
    refused: int
    unknown: int
    answers: int
    faults: tuple[str, ...]


def run_seed(seed: int, dsn: str) -> Report:
    """Run a seed on an empty, migrated database.

    Raises:
        Broken: a law does not hold.
    """
    # What was imported is not looked through again, and what a run leaves is collected at its end.
    gc.freeze()
    gc.disable()
    with _unmourned():
        try:
            return _run_in_virtual_time(seed, dsn)
        except BaseExceptionGroup as group:  # of the clients' tasks
            raise _first_of(group) from group
        finally:
            begin_numbers()
            gc.enable()
            gc.collect()


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _unmourned() -> Iterator[None]:
    """What a killed process held is dropped, never closed: that is what a kill is, and nothing to complain of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed connection", ResourceWarning)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        complain = sys.unraisablehook
        sys.unraisablehook = lambda _what: None  # a task that would go on when the collector closes it
        try:
            yield
        finally:
            sys.unraisablehook = complain


def _run_in_virtual_time(seed: int, dsn: str) -> Report:
    watch = LockWatch(dsn)
    loop = VirtualLoop(Random(seed), watch)
    loop.set_task_factory(task_factory)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(asyncio.wait_for(_run(seed, dsn, loop), MAX_SECONDS))
    finally:
        _close(loop)
        watch.close()


def _close(loop: VirtualLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:  # one that will not end is left: its process is no more
        loop.run_until_complete(asyncio.wait(tasks, timeout=1))
    asyncio.set_event_loop(None)
    loop.close()


async def _run(seed: int, dsn: str, loop: VirtualLoop) -> Report:
    random = Random(seed)
    database = await Database.connect(dsn, max_size=2)
    await _prepare(database)
    time = asyncio.create_task(keep_time(database, loop))
    cluster = SimCluster(loop, dsn, database, random, _choose_strikes(random))
    try:
        return await _run_cluster(seed, cluster, database, random)
    finally:
        time.cancel()
        cluster.kill_all()
        await database.close()


async def _run_cluster(seed: int, cluster: SimCluster, database: Database, random: Random) -> Report:
    cluster.faults.on = False
    await cluster.start(COUNTS)
    require(not cluster.failures, 8, cluster.failures)
    ledger = Ledger()
    rooms: list[str] = []
    talkers = [Talker(cluster, user, USERS, rooms, ledger, Random(random.random())) for user in USERS]
    for number in range(ROOMS):
        rooms.append(await talkers[number % len(talkers)].make_room())
    peer = cluster.peer
    shared = await talkers[0].make_room(room_version=peer.version, power_level_content_override=OPEN_LEVELS)
    await peer.enter(cluster, database, RoomId(shared), ledger)
    listeners = [Listener(cluster, user, Random(random.random()), limit) for user in USERS for limit in (2, 50)]
    cluster.faults.on = True
    async with asyncio.TaskGroup() as listening:
        running = [listening.create_task(listener.run()) for listener in listeners]
        outages = asyncio.create_task(_outages(cluster, random))
        await asyncio.gather(
            *(talker.run(ACTIONS) for talker in talkers),
            talkers[0].chat(shared, CHATS),
            peer.run(cluster, UserId(USERS[0]), ledger),
        )
        outages.cancel()
        cluster.calm()
        await _settle(database)
        for task in running:
            task.cancel()
    require(not cluster.failures, 8, cluster.failures)
    require(not (denied := [one for listener in listeners for one in listener.denied]), 8, denied)
    assert peer.room is not None
    await check_shared_room(database, peer.room, peer.sent)
    await check_stores(database, ledger, cluster.records.highest_positions())
    for listener in listeners:
        for _ in range(10):
            if not await listener.sync_once() and listener.answers:
                break
        fresh = await listener.ask(0, None)
        assert fresh is not None
        await check_client(database, listener, fresh)
    await check_projections(
        database, RoomShards({"main": database}, dict.fromkeys(range(PARTITIONS), "main"), PARTITIONS)
    )
    return Report(
        seed,
        cluster.loop.time(),
        len(ledger.accepted),
        len(ledger.refused),
        len(ledger.unknown),
        sum(len(listener.answers) for listener in listeners),
        tuple(cluster.struck),
    )


async def _settle(database: Database) -> None:
    """Wait for what law 5 promises; whether it has come is for the law to say."""
    await asyncio.sleep(LATE_SECONDS)
    for _ in range(round((SETTLE_SECONDS - LATE_SECONDS) / LOOK_SECONDS)):
        if not await list_unsettled(database):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _prepare(database: Database) -> None:
    await set_up_clock(database)
    await database.execute(TRACING)
    await database.execute(WRITER_TRACING)
    async with database.transaction() as tx:
        await add_partitions(tx, range(PARTITIONS))
        for user in USERS:
            await users.add_user(tx, UserId(user), password_hash=None, displayname=user[1:4], now_ms=0)


def _choose_strikes(random: Random) -> list[Strike]:
    weights = {"writer": 5, "gateway": 2, "sync": 2, "projector": 2, "receiver": 2}
    return [
        Strike(random.choices(KINDS, [weights[kind] for kind in KINDS])[0], int(10 ** random.uniform(0.5, 3.3)), kills)
        for kills in (random.random() < 0.6 for _ in range(random.randint(2, 10)))
    ]


async def _outages(cluster: SimCluster, random: Random) -> None:
    """Kafka and Redis go away, come back, or lose all they had."""
    while True:
        await asyncio.sleep(random.uniform(1, 20))
        what = random.choice(("kafka down", "redis down", "kafka emptied", "hints lost"))
        cluster.struck.append(f"{cluster.loop.time():.3f} {what}")
        if what == "kafka emptied":
            cluster.commands.empty()
            cluster.records.empty()
        elif what == "kafka down":
            cluster.faults.kafka_down = True
            await asyncio.sleep(random.uniform(1, 12))
            cluster.faults.kafka_down = False
            cluster.commands.wake_all()
            cluster.records.wake_all()
        else:
            cluster.faults.redis_down = True
            if what == "redis down":
                cluster.fanout.go_down()
            await asyncio.sleep(random.uniform(1, 12))
            cluster.faults.redis_down = False
            if what == "redis down":
                cluster.fanout.reset()

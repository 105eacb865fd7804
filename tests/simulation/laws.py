"""The laws of DESIGN section 13, checked on what the run left in PostgreSQL and with its clients."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from sim_clients import Ledger, Listener

from matrixcore.events import Event, load_event
from matrixcore.identifiers import ServerName
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.fanout import LocalFanout
from tessera.rebuilding import Rebuilder
from tessera.remote_people import PeopleRebuilder
from tessera.search_rebuilding import SearchRebuilder
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tests.fixtures.epoch_trace import FENCED_COMMITS
from tests.fixtures.room_history import RoomHistory

# Which process moved a head, and whose the partition was at that moment.
WRITER_TRACING = """
CREATE TABLE tracing.writers (partition integer, head bigint, writer text, owner text);
CREATE FUNCTION tracing.note_writer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tracing.writers SELECT new.partition, new.head, current_setting('application_name'), l.owner
    FROM rooms.leases l WHERE l.partition = new.partition;
    RETURN NULL;
END $$;
CREATE TRIGGER note_writer AFTER UPDATE OF head ON rooms.partitions FOR EACH ROW
    WHEN (new.head > old.head) EXECUTE FUNCTION tracing.note_writer();
"""
_FOREIGN_COMMITS = "SELECT * FROM tracing.writers WHERE split_part(owner, '/', 1) <> writer"
_POSITIONS = """
SELECT p.partition, p.head, count(r.position), min(r.position), max(r.position)
FROM rooms.partitions p LEFT JOIN rooms.records r USING (partition) GROUP BY p.partition
"""
_EVENTS = "SELECT room_id, position, event_id FROM rooms.records WHERE kind = 1 ORDER BY room_id, position"
_TXNS = "SELECT event_id, txn_id FROM rooms.events WHERE txn_id IS NOT NULL AND rejected IS NULL"
_LISTS = "SELECT user_id, room_id, membership FROM accounts.user_rooms"
_MEMBERS = """
SELECT state_key, room_id, membership FROM rooms.current_state
WHERE type = 'm.room.member' AND split_part(state_key, ':', 2) = 'sim.example'
"""
_UNSETTLED = """
SELECT (SELECT count(*) FROM rooms.inbox), (SELECT count(*) FROM rooms.missing_events),
       (SELECT count(*) FROM rooms.dead_letters), (SELECT count(*) FROM accounts.stale_rooms)
"""
_BEHIND = """
SELECT c.consumer, p.partition, p.head, c.position FROM rooms.partitions p
CROSS JOIN (SELECT DISTINCT consumer FROM accounts.consumer_cursors) k
LEFT JOIN accounts.consumer_cursors c ON c.partition = p.partition AND c.consumer = k.consumer
WHERE p.head > coalesce(c.position, 0)
"""
_PLACED = "SELECT event_id, pdu FROM rooms.events WHERE room_id = $1 AND anchor IS NOT NULL"
_CURRENT = "SELECT type, state_key, event_id FROM rooms.current_state WHERE room_id = $1"
_EXTREMITIES = "SELECT forward_extremities FROM rooms.rooms WHERE room_id = $1"

_PROJECTIONS = {
    "memberships": "SELECT (user_id, room_id, membership, event_id)::text FROM accounts.user_rooms",
    "directory": "SELECT (to_jsonb(d) - 'position')::text FROM accounts.room_directory d",
    "search": "SELECT s::text FROM rooms.search s",
    "people": "SELECT u::text FROM accounts.remote_users u",
}


class Broken(AssertionError):
    """A law does not hold."""


def require(holds: bool, law: int, what: object) -> None:
    """Raise Broken unless a law holds."""
    if not holds:
        raise Broken(f"law {law}: {what}")


async def list_unsettled(database: Database) -> list[str]:
    """What waits for somebody: inbox rows, parked ones, dead letters, records that consumers lack."""
    counts = await database.fetchrow(_UNSETTLED)
    names = ("in the inbox", "missing ancestors", "dead letters", "stale rooms")
    found = [f"{name}: {count}" for name, count in zip(names, counts, strict=True) if count]
    found += [f"why: {row[0]}" for row in await database.fetch("SELECT error FROM rooms.dead_letters")]
    return found + [f"behind: {tuple(row)}" for row in await database.fetch(_BEHIND)]


async def check_stores(database: Database, ledger: Ledger, announced: Mapping[int, int]) -> None:
    """Laws 1, 2, 5, 6 and 8, on the settled stores.

    Args:
        announced: partition -> the highest position that room.log ever had.
    """
    events = [(row[0], row[1], row[2]) for row in await database.fetch(_EVENTS)]
    times = Counter(event_id for _, _, event_id in events)
    txns = Counter(row[1] for row in await database.fetch(_TXNS))
    for txn_id, event_id in ledger.accepted.items():
        require(times[event_id] == 1, 1, f"{txn_id} was accepted as {event_id}, which is there {times[event_id]} times")
    for txn_id, count in txns.items():
        require(count == 1, 1, f"{txn_id} happened {count} times")
        require(txn_id not in ledger.refused, 1, f"{txn_id} was refused and happened")
    for partition, head, count, first, last in await database.fetch(_POSITIONS):
        require(count == head and (not count or (first, last) == (1, head)), 2, f"partition {partition} has holes")
        require(announced.get(partition, 0) == head, 5, f"partition {partition}: room.log never had all {head} records")
    fenced = [tuple(row) for row in await database.fetch(FENCED_COMMITS)]
    require(not fenced, 2, f"commits under an older epoch, or below the head: {fenced}")
    foreign = [tuple(row) for row in await database.fetch(_FOREIGN_COMMITS)]
    require(not foreign, 2, f"commits of writers that had lost the partition: {foreign}")
    unsettled = await list_unsettled(database)
    require(not unsettled, 5, unsettled)
    lists = {(row[0], row[1]): row[2] for row in await database.fetch(_LISTS)}
    members = {(row[0], row[1]): row[2] for row in await database.fetch(_MEMBERS)}
    require(lists == members, 6, f"room lists differ: {set(lists.items()) ^ set(members.items())}")
    require(not ledger.denied, 8, ledger.denied)


async def check_shared_room(database: Database, told: RoomHistory, sent: Collection[Event]) -> None:
    """Law 7: the state is what the rules make of all that is here, in whatever order it came.

    Args:
        told: all events of the other server. What it did not send may be missing here: then a state was asked for.
        sent: those that must have been taken in as what they are.
    """
    room_id, rules = told.room_id, ROOM_VERSIONS[told.version]
    rows = await database.fetch(_PLACED, room_id)
    placed = {event_id: load_event(pdu, event_id, rules, room_id=room_id) for event_id, pdu in rows}
    lacking = {event.event_id for event in sent} - placed.keys()
    require(not lacking, 7, f"{room_id}: never taken in, or not as what they are: {sorted(lacking)}")
    for event in sorted(placed.values(), key=lambda event: event.depth):  # deeper than all that it follows
        if event.event_id not in told.events:
            told.take(event.pdu, event.event_id)
    extremities = set(await database.fetchval(_EXTREMITIES, room_id))
    referenced = {prev for event in placed.values() for prev in event.prev_events}
    # What follows an event only by way of others that are not here may be known to follow it, or not.
    ends = placed.keys() - told.ancestors(placed)
    wrong = (ends - extremities) | (extremities - (placed.keys() - referenced))
    require(not wrong, 7, f"{room_id}: extremities {sorted(extremities)}, wrong: {sorted(wrong)}")
    state = told.before(sorted(extremities))
    current = {(row[0], row[1]): row[2] for row in await database.fetch(_CURRENT, room_id)}
    require(current == state, 7, f"{room_id}: the state differs: {set(current.items()) ^ set(state.items())}")


async def check_projections(database: Database, shards: RoomShards) -> None:
    """Law 6: made anew, each projection is what the appliers have made of the records."""
    before = {name: await database.fetch(query) for name, query in _PROJECTIONS.items()}
    partitions = range(shards.partitions)
    server_name = ServerName("sim.example")
    rebuilder = Rebuilder(database, shards, LocalFanout(), server_name)
    for steps in (
        rebuilder.rebuild_memberships(partitions),
        rebuilder.rebuild_directory(partitions),
        SearchRebuilder(shards).rebuild(partitions),
        PeopleRebuilder(database, shards, server_name).rebuild(partitions),
    ):
        async for _ in steps:
            pass
    for name, query in _PROJECTIONS.items():
        was, made = ({row[0] for row in rows} for rows in (before[name], await database.fetch(query)))
        require(was == made, 6, f"{name} was {sorted(was - made)} and is to be {sorted(made - was)}")


class Knowledge:
    """What a client knows from its answers, and whether they were in order and whole (law 3)."""

    def __init__(self, positions: Mapping[str, Mapping[str, int]]) -> None:
        self._positions = positions
        self.invites: set[str] = set()
        self.states: dict[str, dict[tuple[str, str], str]] = {}
        self.unread: dict[str, Any] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, int] = {}

    def take(self, answer: Mapping[str, Any]) -> None:
        """The next answer."""
        rooms = answer.get("rooms", {})
        for room_id in rooms.get("invite", {}):
            self._drop(room_id)
            self.invites.add(room_id)
        for room_id, section in rooms.get("leave", {}).items():
            self._check_order(room_id, section)
            self._drop(room_id)
        for room_id, section in rooms.get("join", {}).items():
            self.invites.discard(room_id)
            self._check_order(room_id, section)
            state = self.states.setdefault(room_id, {})
            for event in section["state"]["events"] + section["timeline"]["events"]:
                if "state_key" in event:
                    state[event["type"], event["state_key"]] = event["event_id"]
            if "unread_notifications" in section:
                self.unread[room_id] = section["unread_notifications"]
            self.summaries.setdefault(room_id, {}).update(section.get("summary", {}))

    def _drop(self, room_id: str) -> None:
        self.invites.discard(room_id)
        for known in (self.states, self.unread, self.summaries, self._seen):
            known.pop(room_id, None)

    def _check_order(self, room_id: str, section: Mapping[str, Any]) -> None:
        positions = self._positions[room_id]
        timeline = section["timeline"]
        unknown = [event["event_id"] for event in timeline["events"] if event["event_id"] not in positions]
        require(not unknown, 3, f"events that no record has: {unknown}")
        order = [positions[event["event_id"]] for event in timeline["events"]]
        require(order == sorted(set(order)), 3, f"{room_id} is out of order: {order}")
        before = self._seen.get(room_id)
        if order and before is not None and not timeline["limited"]:
            require(order[0] > before, 3, f"{room_id}: {order} after {before}")
            whole = sorted(one for one in positions.values() if before < one <= order[-1])
            require(whole == order, 3, f"{room_id}: {order} instead of {whole}")
        if order:
            self._seen[room_id] = order[-1]
        elif timeline["limited"]:
            self._seen.pop(room_id, None)  # none of what happened is shown, and what comes next begins above it

    def all(self) -> dict[str, Any]:
        """What must equal the knowledge of a client that begins now (law 4)."""
        return {
            "states": self.states,
            "invites": self.invites,
            "unread": self.unread,
            "summaries": {room_id: self._summary(room_id) for room_id in self.summaries},
        }

    def _summary(self, room_id: str) -> dict[str, Any]:
        """Whom a room without a name is called by is not told any more once it has one."""
        is_named = ("m.room.name", "") in self.states.get(room_id, {})
        return {key: value for key, value in self.summaries[room_id].items() if key != "m.heroes" or not is_named}


async def check_client(database: Database, listener: Listener, fresh: Mapping[str, Any]) -> None:
    """Laws 3 and 4 for one client."""
    positions: dict[str, dict[str, int]] = {}
    for room_id, position, event_id in await database.fetch(_EVENTS):
        positions.setdefault(room_id, {})[event_id] = position
    known, new = Knowledge(positions), Knowledge(positions)
    for answer in listener.answers:
        known.take(answer)
    new.take(fresh)
    for name, value in new.all().items():
        told = known.all()[name]
        require(told == value, 4, f"{listener.token}: {name}: {_difference(told, value)}")


def _difference(told: Any, anew: Any) -> str:
    """What a client was told bit by bit, and what it is told anew, where these differ."""
    if not isinstance(told, dict):
        return f"{told} instead of {anew}"
    rooms = sorted(room_id for room_id in told.keys() | anew.keys() if told.get(room_id) != anew.get(room_id))
    return "; ".join(f"{room_id}: {told.get(room_id)} instead of {anew.get(room_id)}" for room_id in rooms)

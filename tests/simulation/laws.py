"""The laws of DESIGN section 13, checked on what the run left in PostgreSQL and with its clients."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sim_clients import Ledger, Listener

from tessera.storage.database import Database
from tests.fixtures.epoch_trace import FENCED_COMMITS

_POSITIONS = """
SELECT p.partition, p.head, p.announced, count(r.position), min(r.position), max(r.position)
FROM rooms.partitions p LEFT JOIN rooms.records r USING (partition) GROUP BY p.partition
"""
_EVENTS = "SELECT room_id, position, event_id FROM rooms.records WHERE kind = 1 ORDER BY room_id, position"
_TXNS = "SELECT event_id, txn_id FROM rooms.events WHERE txn_id IS NOT NULL AND rejected IS NULL"
_LISTS = "SELECT user_id, room_id, membership FROM accounts.user_rooms"
_MEMBERS = "SELECT state_key, room_id, membership FROM rooms.current_state WHERE type = 'm.room.member'"
_UNSETTLED = """
SELECT (SELECT count(*) FROM rooms.inbox), (SELECT count(*) FROM rooms.dead_letters),
       (SELECT count(*) FROM accounts.stale_rooms)
"""
_BEHIND = """
SELECT c.consumer, p.partition, p.head, c.position FROM rooms.partitions p
CROSS JOIN (SELECT DISTINCT consumer FROM accounts.consumer_cursors) k
LEFT JOIN accounts.consumer_cursors c ON c.partition = p.partition AND c.consumer = k.consumer
WHERE p.head > coalesce(c.position, 0)
"""


class Broken(AssertionError):
    """A law does not hold."""


def require(holds: bool, law: int, what: object) -> None:
    """Raise Broken unless a law holds."""
    if not holds:
        raise Broken(f"law {law}: {what}")


async def check_stores(database: Database, ledger: Ledger) -> None:
    """Laws 1, 2, 5, 6 and 8, on the settled stores."""
    events = [(row[0], row[1], row[2]) for row in await database.fetch(_EVENTS)]
    times = Counter(event_id for _, _, event_id in events)
    txns = Counter(row[1] for row in await database.fetch(_TXNS))
    for txn_id, event_id in ledger.accepted.items():
        require(times[event_id] == 1, 1, f"{txn_id} was accepted as {event_id}, which is there {times[event_id]} times")
    for txn_id, count in txns.items():
        require(count == 1, 1, f"{txn_id} happened {count} times")
        require(txn_id not in ledger.refused, 1, f"{txn_id} was refused and happened")
    for partition, head, announced, count, first, last in await database.fetch(_POSITIONS):
        require(count == head and (not count or (first, last) == (1, head)), 2, f"partition {partition} has holes")
        require(announced <= head, 5, f"partition {partition} is announced to {announced} of {head}")
    fenced = [tuple(row) for row in await database.fetch(FENCED_COMMITS)]
    require(not fenced, 2, f"commits under an older epoch, or below the head: {fenced}")
    inbox, dead_letters, stale_rooms = await database.fetchrow(_UNSETTLED)
    unsettled = f"in the inbox {inbox}, dead letters {dead_letters}, stale rooms {stale_rooms}"
    require(inbox == dead_letters == stale_rooms == 0, 5, unsettled)
    behind = [tuple(row) for row in await database.fetch(_BEHIND)]
    require(not behind, 5, f"consumers are behind: {behind}")
    lists = {(row[0], row[1]): row[2] for row in await database.fetch(_LISTS)}
    members = {(row[0], row[1]): row[2] for row in await database.fetch(_MEMBERS)}
    require(lists == members, 6, f"room lists differ: {set(lists.items()) ^ set(members.items())}")
    require(not ledger.denied, 8, ledger.denied)


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

    def all(self) -> dict[str, Any]:
        """What must equal the knowledge of a client that begins now (law 4)."""
        return {
            "states": self.states,
            "invites": self.invites,
            "unread": self.unread,
            "summaries": self.summaries,
        }


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
        require(known.all()[name] == value, 4, f"{listener.token}: {name}: {known.all()[name]} instead of {value}")

"""The commit of a batch of the room writer: one statement, every row of it fenced.

The statement moves the head of each partition under the guard (partition, epoch, head), and each
insert takes only rows of partitions whose head did move. It is put together from the sections
that have rows, so that a batch of plain messages pays for nothing else; PostgreSQL keeps each of
these few forms prepared.

A command that has an outcome already stops the whole statement: nothing is written and the
outcomes are answered, so that the writer builds the batch again without those commands.

Spec: none; DESIGN.md sections 2 and 3.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import asyncpg

from tessera.commands import Outcome, decode_outcome
from tessera.storage.database import DatabaseUnavailable, Transaction

COMMIT_TIMEOUT_SECONDS = 10.0
BULK_COMMIT_TIMEOUT_SECONDS = 60.0  # of a whole room's state


class CommitUnknown(Exception):
    """Nobody knows whether the statement was committed: its partitions must get new epochs."""


class CommitRefused(Exception):
    """PostgreSQL refused the statement; nothing was written.

    `transient`: the same batch may pass when it is tried again (a race for an outcome, a deadlock).
    """

    def __init__(self, error: Exception, *, transient: bool) -> None:
        super().__init__(str(error))
        self.transient = transient


class Guard(NamedTuple):
    """How a partition moves; only if epoch and head are what they were."""

    partition: int
    epoch: int
    head: int
    new_head: int
    announced: int
    topic_id: str
    done_offset: int


class RoomRow(NamedTuple):
    """What changes of a room with each event. Lists of text are array literals (`array_literal`)."""

    partition: int
    room_id: str
    forward_extremities: str
    depth: int
    last_position: int
    joined_count: int
    invited_count: int
    notify_count: int
    highlight_all_count: int
    forked: bool


class EventRow(NamedTuple):
    """An event with all that its record says."""

    partition: int
    room_id: str
    event_id: str
    anchor: int | None
    sub: int | None
    type: str
    state_key: str | None
    sender: str
    membership: str | None
    depth: int
    origin_server_ts: int
    received_ms: int
    outlier: bool
    rejected: str | None
    soft_failed: str | None
    forked: bool
    pdu: bytes
    sender_device: str | None
    txn_id: str | None
    replaces_state: str | None
    history_visibility: str
    servers: str
    redacts: str | None
    redacted_by: str | None
    original_pdu: bytes | None
    relates_to: str | None
    rel_type: str | None
    relation_key: str | None
    thread_root: str | None
    notify_count: int
    highlight_all_count: int
    thread_notify_count: int
    thread_highlight_all_count: int
    mentions: str
    joined_count: int
    invited_count: int
    stripped_state: bytes | None
    forwarded: bool = False


@dataclass(slots=True)
class WriterBatch:
    """The rows of one commit. Every row begins with its partition; keyed sections keep the last row of a key."""

    guards: list[Guard] = field(default_factory=list)
    outcomes: list[tuple[int, bytes, int, bytes]] = field(default_factory=list)
    rows: defaultdict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, section: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows to a section of `SECTIONS`."""
        self.rows[section].extend(rows)


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit came to. If any command was `decided` before, nothing at all was written."""

    moved: frozenset[int]  # partitions whose rows are committed; the others belong to somebody else
    decided: tuple[Outcome, ...]


def array_literal(values: Iterable[str]) -> str:
    """The text of a text[], for arrays inside unnested rows (unnest would flatten nested arrays)."""
    quoted = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
    return "{" + ",".join(quoted) + "}"


async def commit(tx: Transaction, batch: WriterBatch) -> CommitResult:
    """Write a batch, or those of its partitions that still are the writer's.

    Args:
        tx: a connection outside a transaction; the statement commits itself.

    Raises:
        CommitUnknown, CommitRefused
    """
    sections = tuple(name for name in SECTIONS if batch.rows.get(name))
    is_single = len(batch.guards) == len(batch.outcomes) == 1 and all(len(batch.rows[name]) == 1 for name in sections)
    parameters = (_single_row if is_single else _columns)(batch, sections)
    seconds = BULK_COMMIT_TIMEOUT_SECONDS if "staged_events" in sections else COMMIT_TIMEOUT_SECONDS
    try:
        rows = await tx.fetch(_statement(sections, is_single), *parameters, timeout=seconds)
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "08")[:2] in _UNKNOWN_CLASSES:
            raise CommitUnknown(str(error)) from error
        transient = isinstance(
            error, asyncpg.DeadlockDetectedError | asyncpg.SerializationError | asyncpg.LockNotAvailableError
        )
        raise CommitRefused(error, transient=transient or _is_outcome_race(error)) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, DatabaseUnavailable) as error:
        if isinstance(error, asyncpg.DataError):  # a parameter that could not even be encoded
            raise CommitRefused(error, transient=False) from error
        raise CommitUnknown(str(error) or type(error).__name__) from error
    moved = frozenset(row[0] for row in rows if row[0] is not None)
    return CommitResult(moved, tuple(decode_outcome(row[1]) for row in rows if row[0] is None))


def _columns(batch: WriterBatch, sections: Sequence[str]) -> list[Any]:
    parameters: list[Any] = [[row[1] for row in batch.outcomes]]
    parameters += zip(*batch.guards, strict=True)
    parameters += zip(*batch.outcomes, strict=True) if batch.outcomes else ((), (), (), ())
    for name in sections:
        parameters += zip(*batch.rows[name], strict=True)
    return parameters


def _single_row(batch: WriterBatch, sections: Sequence[str]) -> list[Any]:
    """One message in a quiet moment is one row everywhere; eighty arrays of one value each cost more than values."""
    outcome = batch.outcomes[0]
    parameters: list[Any] = [outcome[1], *batch.guards[0], *outcome]
    for name in sections:
        parameters += batch.rows[name][0]
    return parameters


# Connection, operator intervention, system and internal errors: the commit may or may not have been reached.
_UNKNOWN_CLASSES: Final = frozenset(("08", "57", "58", "XX", "53"))


def _is_outcome_race(error: asyncpg.PostgresError) -> bool:
    """Whether somebody decided a command (withdrew it) between this statement's begin and its insert."""
    return isinstance(error, asyncpg.UniqueViolationError) and error.constraint_name == "outcomes_pkey"


class _Section(NamedTuple):
    """Rows of one table: the columns with their types, and what is done with them.

    `{rows}` stands for the unnested rows of partitions that moved, under the alias r.
    """

    columns: str
    action: str


_EVENT_TYPES = {
    "partition": "integer", "anchor": "bigint", "sub": "integer", "depth": "bigint", "origin_server_ts": "bigint",
    "received_ms": "bigint", "outlier": "boolean", "forked": "boolean", "pdu": "bytea", "original_pdu": "bytea",
    "notify_count": "bigint", "highlight_all_count": "bigint", "thread_notify_count": "bigint",
    "thread_highlight_all_count": "bigint", "joined_count": "integer", "invited_count": "integer",
    "stripped_state": "bytea", "forwarded": "boolean",
}  # fmt: skip
_LISTS = ("servers", "mentions")
_EVENT_COLUMNS = EventRow._fields[1:]
_EVENT_VALUES = ", ".join(f"r.{name}::text[]" if name in _LISTS else f"r.{name}" for name in _EVENT_COLUMNS)

_STAGED_COLUMNS = "join_id text, room_id text, position bigint, user_id text"
_IS_STAGED_STATE = "j.is_state AND j.rejected IS NULL"
_STAGED_SAME = (
    "SELECT FROM rooms.join_events j WHERE j.join_id = r.join_id AND j.type = c.type AND j.state_key = c.state_key"
    f" AND {_IS_STAGED_STATE}"
)

SECTIONS: Final[dict[str, _Section]] = {
    "records": _Section(
        "partition integer, position bigint, incarnation integer, room_id text, room_previous bigint, kind smallint,"
        " event_id text, body bytea",
        "INSERT INTO rooms.records (partition, position, incarnation, room_id, room_previous, kind, event_id, body)"
        " SELECT * FROM {rows}",
    ),
    "new_rooms": _Section(
        "partition integer, room_id text, forward_extremities text, depth bigint, last_position bigint,"
        " joined_count integer, invited_count integer, notify_count bigint, highlight_all_count bigint,"
        " forked boolean, room_version text, creator text, create_event_id text, created_ms bigint",
        "INSERT INTO rooms.rooms (partition, room_id, forward_extremities, depth, last_position, joined_count,"
        " invited_count, notify_count, highlight_all_count, forked, room_version, creator, create_event_id,"
        " created_ms) SELECT r.partition, r.room_id, r.forward_extremities::text[], r.depth, r.last_position,"
        " r.joined_count, r.invited_count, r.notify_count, r.highlight_all_count, r.forked, r.room_version,"
        " r.creator, r.create_event_id, r.created_ms FROM {rows}",
    ),
    "rooms": _Section(
        "partition integer, room_id text, forward_extremities text, depth bigint, last_position bigint,"
        " joined_count integer, invited_count integer, notify_count bigint, highlight_all_count bigint,"
        " forked boolean",
        "UPDATE rooms.rooms t SET forward_extremities = r.forward_extremities::text[], depth = r.depth,"
        " last_position = r.last_position, joined_count = r.joined_count, invited_count = r.invited_count,"
        " notify_count = r.notify_count, highlight_all_count = r.highlight_all_count, forked = r.forked"
        " FROM {rows} AND t.room_id = r.room_id",
    ),
    # An event that was stored as an outlier gets its place when it comes as part of the DAG.
    "events": _Section(
        ", ".join(f"{name} {_EVENT_TYPES.get(name, 'text')}" for name in EventRow._fields),
        f"INSERT INTO rooms.events ({', '.join(_EVENT_COLUMNS)}) SELECT {_EVENT_VALUES} FROM {{rows}}"
        " ON CONFLICT (room_id, event_id) DO UPDATE SET"
        f" {', '.join(f'{name} = excluded.{name}' for name in _EVENT_COLUMNS[2:])} WHERE events.outlier",
    ),
    "edges": _Section(
        "partition integer, room_id text, prev_event_id text, event_id text",
        "INSERT INTO rooms.event_edges (room_id, prev_event_id, event_id)"
        " SELECT r.room_id, r.prev_event_id, r.event_id FROM {rows} ON CONFLICT DO NOTHING",
    ),
    "state": _Section(
        "partition integer, room_id text, type text, state_key text, event_id text, anchor bigint, sub integer,"
        " membership text",
        "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, sub, membership)"
        " SELECT r.room_id, r.type, r.state_key, r.event_id, r.anchor, r.sub, r.membership FROM {rows}"
        " ON CONFLICT (room_id, type, state_key) DO UPDATE SET event_id = excluded.event_id,"
        " anchor = excluded.anchor, sub = excluded.sub, membership = excluded.membership",
    ),
    "state_gone": _Section(
        "partition integer, room_id text, type text, state_key text",
        "DELETE FROM rooms.current_state t USING {rows} AND t.room_id = r.room_id AND t.type = r.type"
        " AND t.state_key = r.state_key",
    ),
    "history": _Section(
        "partition integer, room_id text, type text, state_key text, anchor bigint, sub integer, event_id text,"
        " membership text",
        "INSERT INTO rooms.state_history (room_id, type, state_key, anchor, sub, event_id, membership)"
        " SELECT r.room_id, r.type, r.state_key, r.anchor, r.sub, r.event_id, r.membership FROM {rows}",
    ),
    "servers": _Section(
        "partition integer, room_id text, server_name text, joined_count integer",
        "INSERT INTO rooms.room_servers (room_id, server_name, joined_count)"
        " SELECT r.room_id, r.server_name, r.joined_count FROM {rows}"
        " ON CONFLICT (room_id, server_name) DO UPDATE SET joined_count = excluded.joined_count",
    ),
    "servers_gone": _Section(
        "partition integer, room_id text, server_name text",
        "DELETE FROM rooms.room_servers t USING {rows} AND t.room_id = r.room_id AND t.server_name = r.server_name",
    ),
    "threads": _Section(
        "partition integer, room_id text, thread_root text, reply_count bigint, latest_event_id text,"
        " latest_anchor bigint, notify_count bigint, highlight_all_count bigint",
        "INSERT INTO rooms.threads (room_id, thread_root, reply_count, latest_event_id, latest_anchor, notify_count,"
        " highlight_all_count) SELECT r.room_id, r.thread_root, r.reply_count, r.latest_event_id,"
        " r.latest_anchor, r.notify_count, r.highlight_all_count FROM {rows}"
        " ON CONFLICT (room_id, thread_root) DO UPDATE SET reply_count = excluded.reply_count,"
        " latest_event_id = excluded.latest_event_id, latest_anchor = excluded.latest_anchor,"
        " notify_count = excluded.notify_count, highlight_all_count = excluded.highlight_all_count",
    ),
    "mentions": _Section(
        "partition integer, room_id text, user_id text, anchor bigint, thread_root text, event_id text",
        "INSERT INTO rooms.mentions (room_id, user_id, anchor, thread_root, event_id)"
        " SELECT r.room_id, r.user_id, r.anchor, r.thread_root, r.event_id FROM {rows}",
    ),
    "receipts": _Section(
        "partition integer, room_id text, receipt_type text, user_id text, thread_id text, event_id text, ts bigint,"
        " position bigint",
        "INSERT INTO rooms.receipts (room_id, receipt_type, user_id, thread_id, event_id, ts, position)"
        " SELECT r.room_id, r.receipt_type, r.user_id, r.thread_id, r.event_id, r.ts, r.position FROM {rows}"
        " ON CONFLICT (room_id, receipt_type, user_id, thread_id) DO UPDATE SET event_id = excluded.event_id,"
        " ts = excluded.ts, position = excluded.position",
    ),
    # The served bytes are swapped, the original is kept apart; a redacted event relates to nothing any more.
    "redacted": _Section(
        "partition integer, room_id text, event_id text, redacted_by text, pdu bytea",
        "UPDATE rooms.events t SET original_pdu = t.pdu, pdu = r.pdu, redacted_by = r.redacted_by, relates_to = NULL,"
        " rel_type = NULL, relation_key = NULL"
        " FROM {rows} AND t.room_id = r.room_id AND t.event_id = r.event_id AND t.redacted_by IS NULL",
    ),
    "mentions_gone": _Section(
        "partition integer, room_id text, anchor bigint",
        "DELETE FROM rooms.mentions t USING {rows} AND t.room_id = r.room_id AND t.anchor = r.anchor",
    ),
    # A redaction that waited for its target gets its place.
    "placed": _Section(
        "partition integer, room_id text, event_id text, anchor bigint",
        "UPDATE rooms.events t SET anchor = r.anchor, sub = 0"
        " FROM {rows} AND t.room_id = r.room_id AND t.event_id = r.event_id AND t.anchor IS NULL",
    ),
    "forked_states": _Section(
        "partition integer, room_id text, event_id text, base_anchor bigint, base_sub integer, delta bytea",
        "INSERT INTO rooms.forked_states (room_id, event_id, base_anchor, base_sub, delta)"
        " SELECT r.room_id, r.event_id, r.base_anchor, r.base_sub, r.delta FROM {rows} ON CONFLICT DO NOTHING",
    ),
    "backward": _Section(
        "partition integer, room_id text, event_id text, anchor bigint, sub integer",
        "INSERT INTO rooms.backward_extremities (room_id, event_id, anchor, sub)"
        " SELECT r.room_id, r.event_id, r.anchor, r.sub FROM {rows} ON CONFLICT DO NOTHING",
    ),
    "backward_gone": _Section(
        "partition integer, room_id text, anchor bigint, sub integer",
        "DELETE FROM rooms.backward_extremities t USING {rows} AND t.room_id = r.room_id AND t.anchor = r.anchor"
        " AND t.sub = r.sub",
    ),
    # What was taken in because it had been asked for may have been sent to us since it was read: then it stays.
    "inbox_gone": _Section(
        "partition integer, inbox_id bigint, asked_for boolean",
        "DELETE FROM rooms.inbox t USING {rows} AND t.inbox_id = r.inbox_id"
        " AND (NOT r.asked_for OR t.outlier OR t.below IS NOT NULL)",
    ),
    "inbox_parked": _Section(
        "partition integer, inbox_id bigint",
        "UPDATE rooms.inbox t SET state = 'parked' FROM {rows} AND t.inbox_id = r.inbox_id",
    ),
    # federation_in asks the room's policy server, and names the row again.
    "inbox_unsigned": _Section(
        "partition integer, inbox_id bigint",
        "UPDATE rooms.inbox t SET state = 'unsigned', named_at = now() FROM {rows} AND t.inbox_id = r.inbox_id",
    ),
    # It is out of the way, and waits for nothing.
    "inbox_dead": _Section(
        "partition integer, inbox_id bigint",
        "UPDATE rooms.inbox t SET state = 'dead' FROM {rows} AND t.inbox_id = r.inbox_id",
    ),
    "missing_dead": _Section(
        "partition integer, inbox_id bigint",
        "DELETE FROM rooms.missing_events t USING {rows} AND t.inbox_id = r.inbox_id",
    ),
    # What sufficed as an outlier is an ancestor, too, once a row that was wanted as an outlier is sent to us.
    "missing": _Section(
        "partition integer, room_id text, missing_event_id text, inbox_id bigint, as_outlier boolean",
        "INSERT INTO rooms.missing_events AS t (room_id, missing_event_id, inbox_id, as_outlier)"
        " SELECT r.room_id, r.missing_event_id, r.inbox_id, r.as_outlier FROM {rows}"
        " ON CONFLICT (room_id, missing_event_id, inbox_id) DO UPDATE"
        " SET as_outlier = t.as_outlier AND excluded.as_outlier",
    ),
    "missing_gone": _Section(
        "partition integer, room_id text, missing_event_id text",
        "DELETE FROM rooms.missing_events t USING {rows} AND t.room_id = r.room_id"
        " AND t.missing_event_id = r.missing_event_id",
    ),
    # A join of ours: state and auth chain have been staged (tessera.storage.joins). The member event of who joins is
    # not part of it, as the batch itself writes what follows.
    "staged_events": _Section(
        f"partition integer, {_STAGED_COLUMNS}, received_ms bigint",
        "INSERT INTO rooms.events (room_id, event_id, type, state_key, sender, membership, depth, origin_server_ts,"
        " received_ms, outlier, rejected, pdu) SELECT r.room_id, j.event_id, j.type, j.state_key, j.sender,"
        " j.membership, j.depth, j.origin_server_ts, r.received_ms, true, j.rejected, j.pdu"
        " FROM rooms.join_events j, {rows} AND j.join_id = r.join_id ON CONFLICT (room_id, event_id) DO NOTHING",
    ),
    "staged_state": _Section(
        f"partition integer, {_STAGED_COLUMNS}",
        "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, sub, membership)"
        " SELECT r.room_id, j.type, j.state_key, j.event_id, r.position, 0, j.membership"
        f" FROM rooms.join_events j, {{rows}} AND j.join_id = r.join_id AND {_IS_STAGED_STATE}"
        " AND NOT (j.type = 'm.room.member' AND j.state_key = r.user_id)"
        " ON CONFLICT (room_id, type, state_key) DO UPDATE SET event_id = excluded.event_id,"
        " anchor = excluded.anchor, sub = excluded.sub, membership = excluded.membership",
    ),
    "staged_history": _Section(
        f"partition integer, {_STAGED_COLUMNS}",
        "INSERT INTO rooms.state_history (room_id, type, state_key, anchor, sub, event_id, membership)"
        " SELECT r.room_id, j.type, j.state_key, r.position, 0, j.event_id, j.membership"
        f" FROM rooms.join_events j, {{rows}} AND j.join_id = r.join_id AND {_IS_STAGED_STATE}",
    ),
    # What the room had when this server lost sight of it, and has no more.
    "staged_history_gone": _Section(
        f"partition integer, {_STAGED_COLUMNS}",
        "INSERT INTO rooms.state_history (room_id, type, state_key, anchor, sub)"
        " SELECT r.room_id, c.type, c.state_key, r.position, 0 FROM rooms.current_state c, {rows}"
        f" AND c.room_id = r.room_id AND NOT EXISTS ({_STAGED_SAME})",
    ),
    "staged_state_gone": _Section(
        f"partition integer, {_STAGED_COLUMNS}",
        "DELETE FROM rooms.current_state c USING {rows} AND c.room_id = r.room_id"
        f" AND NOT (c.type = 'm.room.member' AND c.state_key = r.user_id) AND NOT EXISTS ({_STAGED_SAME})",
    ),
    "joins_done": _Section(
        "partition integer, join_id text",
        "UPDATE rooms.joins t SET state = 'done' FROM {rows} AND t.join_id = r.join_id",
    ),
    "dead_letters": _Section(
        "partition integer, command_id bytea, room_id text, command bytea, error text",
        "INSERT INTO rooms.dead_letters (partition, command_id, room_id, command, error) SELECT * FROM {rows}"
        " ON CONFLICT (command_id) DO UPDATE SET state = 'dead', error = excluded.error",  # replayed in vain
    ),
    "attempts_gone": _Section(
        "partition integer, command_id bytea",
        "DELETE FROM rooms.command_attempts t USING {rows} AND t.command_id = r.command_id",
    ),
}

_GUARD_COLUMNS = (
    "partition integer, epoch bigint, head bigint, new_head bigint, announced bigint, topic_id text, done_offset bigint"
)
_OUTCOMES = _Section(
    "partition integer, command_id bytea, status smallint, body bytea",
    "INSERT INTO rooms.outcomes (partition, command_id, status, body) SELECT * FROM {rows}",
)


@lru_cache(maxsize=512)
def _statement(sections: Sequence[str], is_single: bool) -> str:
    """The statement that writes these sections. Parameters: the command ids, then the columns in order.

    Args:
        is_single: each section has one row, whose values are parameters of their own.
    """
    ids = "= $1::bytea" if is_single else "= ANY($1::bytea[])"
    source = _values if is_single else _unnest
    parts = [f"WITH decided AS MATERIALIZED (SELECT body FROM rooms.outcomes WHERE command_id {ids})"]
    guard, number = source(_GUARD_COLUMNS, 2)
    parts.append(
        # Put together from names that stand in this file alone.
        "moved AS (UPDATE rooms.partitions p SET head = g.new_head, announced = greatest(p.announced, g.announced),"
        f" topic_id = g.topic_id, done_offset = g.done_offset FROM {guard} AS g ({_names(_GUARD_COLUMNS)})"
        " WHERE p.partition = g.partition AND p.epoch = g.epoch AND p.head = g.head AND p.state = 'active'"
        " AND NOT EXISTS (SELECT FROM decided) RETURNING p.partition)"
    )
    for name, section in (("outcomes", _OUTCOMES), *((name, SECTIONS[name]) for name in sections)):
        given, number = source(section.columns, number)
        rows = f"{given} AS r ({_names(section.columns)}) WHERE r.partition IN (SELECT partition FROM moved)"
        parts.append(f"_{name} AS ({section.action.replace('{rows}', rows)})")
    answer = " SELECT partition, NULL::bytea FROM moved UNION ALL SELECT NULL, body FROM decided"
    return ", ".join(parts) + answer


def _unnest(columns: str, number: int) -> tuple[str, int]:
    types = [column.split()[1] for column in columns.split(", ")]
    arguments = ", ".join(f"${number + index}::{kind}[]" for index, kind in enumerate(types))
    return f"unnest({arguments})", number + len(types)


def _values(columns: str, number: int) -> tuple[str, int]:
    types = [column.split()[1] for column in columns.split(", ")]
    values = ", ".join(f"${number + index}::{kind}" for index, kind in enumerate(types))
    return f"(VALUES ({values}))", number + len(types)


def _names(columns: str) -> str:
    return ", ".join(column.split()[0] for column in columns.split(", "))

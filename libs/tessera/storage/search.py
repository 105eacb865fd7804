"""The search index of a room shard: which events have which words.

A projection of rooms.events. Two ways lead to the hits. The newest rows of each room are looked through first, few and
then more: that finds words that are frequent, of which the word index would bring far too many, and it is all there is
for users with small rooms. What is not frequent there is looked up in the indexes of words and rooms.

Spec: C-S API §Server Side Search.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.search_texts import SEARCHED_TYPES, SearchKind
from tessera.storage.database import Transaction

LOOKED_THROUGH = (2_500, 10_000)  # newest rows of all rooms together, by and large; the second if a word is frequent
FREQUENT = 0.03  # share of the rows looked through
MIN_WINDOW = 10  # rows of one room
RANKED = 1_000  # the newest hits, among which the best are found
ENOUGH = 300  # hits among the newest rows, by which the best are found without the index
MAX_WORDS = 20
_HIGHEST_TS = (1 << 63) - 1
_TERM = re.compile(r'"([^"]*)"|(\S+)')


class SearchText(NamedTuple):
    """An event to be found."""

    room_id: RoomId
    event_id: EventId
    kind: SearchKind
    ts: int
    sender: UserId
    text: str


class Hit(NamedTuple):
    """An event found; the order of the fields is that of `rank`, and without the first that of `recent`."""

    rank: float
    ts: int
    event_id: EventId
    room_id: RoomId


class Hits(NamedTuple):
    """What is found in one shard, and about how much there is in all."""

    hits: list[Hit]
    total: int


@dataclass(frozen=True, slots=True)
class Hunt:
    """What is looked for.

    Attributes:
        query: `parse_term`.
        rooms: of the shard that is asked.
        senders: None for everybody.
        related_by_senders, related_by_rel_types: only events to which such an event relates.
        below: only what is older than this (ts, event ID).
    """

    query: str
    rooms: Sequence[RoomId]
    kinds: Sequence[SearchKind]
    senders: Sequence[str] | None = None
    not_senders: Sequence[str] = ()
    related_by_senders: Sequence[str] | None = None
    related_by_rel_types: Sequence[str] | None = None
    below: tuple[int, str] | None = None


_INDEX = """
INSERT INTO rooms.search AS s (room_id, event_id, kind, ts, sender, words)
SELECT i.room_id, i.event_id, i.kind, i.ts, i.sender, to_tsvector('simple', i.text)
FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[], $5::text[], $6::text[])
    AS i (room_id, event_id, kind, ts, sender, text)
JOIN rooms.events e ON e.room_id = i.room_id AND e.event_id = i.event_id AND e.redacted_by IS NULL
    AND e.anchor IS NOT NULL
ON CONFLICT (room_id, event_id) DO UPDATE SET kind = EXCLUDED.kind, ts = EXCLUDED.ts, sender = EXCLUDED.sender,
    words = EXCLUDED.words
WHERE (s.kind, s.ts, s.sender, s.words) IS DISTINCT FROM
      (EXCLUDED.kind, EXCLUDED.ts, EXCLUDED.sender, EXCLUDED.words)
"""

_DELETE = """
DELETE FROM rooms.search s USING unnest($1::text[], $2::text[]) AS w (room_id, event_id)
WHERE s.room_id = w.room_id AND s.event_id = w.event_id
"""

_DELETE_ORPHANS = """
DELETE FROM rooms.search s WHERE s.room_id = ANY($1::text[]) AND NOT EXISTS (
    SELECT FROM rooms.events e WHERE e.room_id = s.room_id AND e.event_id = s.event_id AND e.redacted_by IS NULL
)
"""

_LIST_SOURCES = """
SELECT room_id, anchor, sub, event_id, type, origin_server_ts, sender, redacted_by IS NOT NULL, pdu
FROM rooms.events
WHERE room_id = $1 AND (anchor, sub) > ($2, $3) AND anchor IS NOT NULL
ORDER BY anchor, sub LIMIT $4
"""

# The first column: below it some rooms have rows that were not looked at; NULL where all were.
_LOOK_THROUGH = """
WITH looked AS MATERIALIZED (
    SELECT s.*
    FROM unnest($2::text[]) AS w (room_id)
    CROSS JOIN LATERAL (
        SELECT * FROM rooms.search r
        WHERE r.room_id = w.room_id AND r.ts <= $4 AND (r.ts, r.event_id COLLATE "C") < ($4, $5)
        ORDER BY r.ts DESC, r.event_id COLLATE "C" DESC LIMIT $6
    ) s
)
SELECT cut.at, h.rank, h.ts, h.event_id, h.room_id
FROM (
    SELECT max(oldest) AS at
    FROM (SELECT min(ts) AS oldest FROM looked GROUP BY room_id HAVING count(*) >= $6) one
) cut
LEFT JOIN (
    SELECT ts_rank_cd(s.words, to_tsquery('simple', $1)) AS rank, s.ts, s.event_id, s.room_id
    FROM looked s
    WHERE s.words @@ to_tsquery('simple', $1) AND s.kind = ANY($3::smallint[]) {conditions}
) h ON true
"""

# Which of the two indexes is read, or what both have in common, depends on the words and the rooms, so that this is
# planned for each.
_PLAN_FOR_VALUES = "SET LOCAL plan_cache_mode = force_custom_plan"

_LOOK_UP = """
SELECT ts_rank_cd(h.words, to_tsquery('simple', $1)), h.ts, h.event_id, h.room_id, h.total
FROM (
    SELECT s.*, count(*) OVER () AS total
    FROM rooms.search s
    WHERE s.room_id = ANY($2::text[]) AND s.words @@ to_tsquery('simple', $1) AND s.kind = ANY($3::smallint[])
      AND (s.ts, s.event_id COLLATE "C") < ($4, $5) {conditions}
    ORDER BY s.ts DESC, s.event_id COLLATE "C" DESC LIMIT $6
) h
"""


def parse_term(term: str) -> tuple[str, list[str]]:
    """(query for the index, words to be highlighted) of what a person typed.

    All words must be there, in any order; a word matches those that begin with it, "several words" in quotation
    marks stand as they are.
    """
    parts: list[str] = []
    words: list[str] = []
    for phrase, word in _TERM.findall(term.replace("\0", " ").lower())[:MAX_WORDS]:
        text = (phrase or word).strip()
        if not text:
            continue
        escaped = text.replace("\\", "\\\\").replace("'", "''")
        parts.append(f"'{escaped}'" if phrase else f"'{escaped}':*")
        words += re.findall(r"\w+", text)
    return " & ".join(parts), list(dict.fromkeys(words))


async def index_events(tx: Transaction, texts: Sequence[SearchText]) -> int:
    """Let these events be found, if they are there and not redacted; how many rows changed. Repeatable."""
    columns = zip(*dict.fromkeys(texts), strict=True) if texts else [()] * 6
    tag = await tx.execute(_INDEX, *(list(column) for column in columns))
    return int(tag.split()[-1])


async def delete_events(tx: Transaction, events: Sequence[tuple[RoomId, EventId]]) -> None:
    """Let these events be found no more. Repeatable."""
    await tx.execute(_DELETE, [one[0] for one in events], [one[1] for one in events])


async def delete_orphans(tx: Transaction, room_ids: Sequence[RoomId]) -> int:
    """Drop what events of these rooms have left that are gone or redacted; how many rows."""
    tag = await tx.execute(_DELETE_ORPHANS, list(room_ids))
    return int(tag.split()[-1])


class SearchSource(NamedTuple):
    """An event from which the index is made anew, with its place in the room."""

    room_id: RoomId
    anchor: int
    sub: int
    event_id: EventId
    type: str
    ts: int
    sender: UserId
    redacted: bool
    pdu: bytes

    @property
    def is_searched(self) -> bool:
        """Whether it may have words."""
        return not self.redacted and self.type in SEARCHED_TYPES


async def list_sources(tx: Transaction, room_id: RoomId, after: tuple[int, int], limit: int) -> list[SearchSource]:
    """The next events of a room above (anchor, sub)."""
    return [SearchSource(*row) for row in await tx.fetch(_LIST_SOURCES, room_id, *after, limit)]


async def find_recent(tx: Transaction, hunt: Hunt, limit: int) -> Hits:
    """The newest hits, newest first; in a transaction."""
    for rows in LOOKED_THROUGH:
        hits, cut = await _look_through(tx, hunt, rows)
        exact = [hit for hit in hits if cut is None or hit.ts >= cut]
        if cut is None or len(exact) >= limit:
            exact.sort(key=lambda hit: hit[1:], reverse=True)
            return Hits(exact[:limit], len(hits))
        if len(hits) < FREQUENT * rows:
            break
    return await _look_up(tx, hunt, limit)


async def find_best(tx: Transaction, hunt: Hunt) -> Hits:
    """The best hits first: of all, or of the newest where there are very many; in a transaction."""
    for rows in LOOKED_THROUGH:
        hits, cut = await _look_through(tx, hunt, rows)
        if cut is None or len(hits) >= ENOUGH:
            return Hits(sorted(hits, reverse=True), len(hits))
        if len(hits) < FREQUENT * rows:
            break
    found = await _look_up(tx, hunt, RANKED)
    return found._replace(hits=sorted(found.hits, reverse=True))


async def _look_through(tx: Transaction, hunt: Hunt, rows: int) -> tuple[list[Hit], int | None]:
    """Hits among the newest rows, and the time below which there are others; None if there are none."""
    window = max(MIN_WINDOW, rows // max(1, len(hunt.rooms)))
    query, values = _statement(_LOOK_THROUGH, hunt, window)
    found = await tx.fetch(query, *values)
    return [Hit(*row[1:]) for row in found if row[1] is not None], found[0][0]


async def _look_up(tx: Transaction, hunt: Hunt, limit: int) -> Hits:
    query, values = _statement(_LOOK_UP, hunt, limit)
    await tx.execute(_PLAN_FOR_VALUES)
    rows = await tx.fetch(query, *values)
    hits = sorted((Hit(*row[:4]) for row in rows), key=lambda hit: hit[1:], reverse=True)
    return Hits(hits, rows[0][4] if rows else 0)


def _statement(template: str, hunt: Hunt, limit: int) -> tuple[str, list[object]]:
    """The statement with the conditions that the hunt has, and its values."""
    below = hunt.below or (_HIGHEST_TS, "")
    values: list[object] = [hunt.query, list(hunt.rooms), [int(kind) for kind in hunt.kinds], *below, limit]

    def number_of(value: Sequence[str]) -> str:
        values.append(list(value))
        return f"${len(values)}::text[]"

    conditions = []
    if hunt.senders is not None:
        conditions.append(f"AND s.sender = ANY({number_of(hunt.senders)})")
    if hunt.not_senders:
        conditions.append(f"AND s.sender <> ALL({number_of(hunt.not_senders)})")
    if hunt.related_by_senders is not None or hunt.related_by_rel_types is not None:
        child = "c.room_id = s.room_id AND c.relates_to = s.event_id AND c.redacted_by IS NULL AND c.anchor IS NOT NULL"
        if hunt.related_by_senders is not None:
            child += f" AND c.sender = ANY({number_of(hunt.related_by_senders)})"
        if hunt.related_by_rel_types is not None:
            child += f" AND c.rel_type = ANY({number_of(hunt.related_by_rel_types)})"
        conditions.append(f"AND EXISTS (SELECT FROM rooms.events c WHERE {child})")
    return template.format(conditions=" ".join(conditions)), values

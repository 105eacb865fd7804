"""Making the search index anew while the server runs (DESIGN section 2, invariant 12)."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import orjson

from matrixcore.identifiers import RoomId
from tessera.rebuilding import Progress, walk_rooms
from tessera.search_texts import SEARCHED_TYPES, searched_text
from tessera.storage import search
from tessera.storage.database import Database
from tessera.storage.search import SearchSource, SearchText
from tessera.storage.shards import RoomShards

EVENTS = 2_000  # read at once
_BEGINNING = (-(1 << 62), 0)


@dataclass(frozen=True, slots=True)
class SearchRebuilder:
    """Brings the index of room shards back to what their events say. Repeatable, and harmless beside the projector."""

    shards: RoomShards

    async def rebuild(self, partitions: Sequence[int]) -> AsyncIterator[Progress]:
        """One step a page of rooms."""
        async for partition, database, room_ids in walk_rooms(self.shards, partitions):
            changed = sum([await self._index_room(database, room_id) for room_id in room_ids])
            async with database.transaction() as tx:
                changed += await search.delete_orphans(tx, room_ids)
            yield Progress(partition, len(room_ids), changed)

    async def _index_room(self, database: Database, room_id: RoomId) -> int:
        """Room by room, as one alone may have a million events; how many rows were wrong."""
        after, changed = _BEGINNING, 0
        while True:
            async with database.transaction() as tx:
                sources = await search.list_sources(tx, room_id, after, EVENTS)
                texts = [text for source in sources if (text := _text_of(source)) is not None]
                if texts:
                    changed += await search.index_events(tx, texts)
            if len(sources) < EVENTS:
                return changed
            after = (sources[-1].anchor, sources[-1].sub)


def _text_of(source: SearchSource) -> SearchText | None:
    if not source.is_searched:
        return None
    text = searched_text(source.type, orjson.loads(source.pdu)["content"])
    if text is None:
        return None
    return SearchText(source.room_id, source.event_id, SEARCHED_TYPES[source.type], source.ts, source.sender, text)

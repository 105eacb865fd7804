"""What is searched, from room.log: into the room shard itself, beside the events."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from tessera.record_consumer import NOTHING_TO_APPLY, AfterCommit
from tessera.records import EventBody, LogRecord, RecordKind, RedactionBody
from tessera.search_texts import SEARCHED_TYPES, searched_text
from tessera.storage import search
from tessera.storage.database import Transaction
from tessera.storage.search import SearchText
from tessera.storage.shards import RoomShards

CONSUMER = "search"


@dataclass(frozen=True, slots=True)
class SearchStep:
    """Keeps the search index of each shard. Spec: C-S API §Server Side Search."""

    shards: RoomShards

    def concerns(self, record: LogRecord) -> bool:
        """Messages, names and topics; redactions and purged rooms."""
        match record.body:
            case EventBody(type=event_type, redacted=redacted):
                return event_type in SEARCHED_TYPES and not redacted
            case RedactionBody():
                return True
            case _:
                return record.kind is RecordKind.PURGED

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """All of it: the index lies in the room shard, where a replay changes nothing."""
        texts = [text for record in records if (text := _text_of(record)) is not None]
        redacted = [(r.room_id, r.body.event_id) for r in records if isinstance(r.body, RedactionBody)]
        purged = [record.room_id for record in records if record.kind is RecordKind.PURGED]
        async with self.shards.of_partition(records[0].partition).transaction() as tx:
            if texts:
                await search.index_events(tx, texts)
            if redacted:
                await search.delete_events(tx, redacted)
            if purged:
                await search.delete_orphans(tx, purged)
        return NOTHING_TO_APPLY

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """Never asked: there is nothing in the account store."""
        return None


def _text_of(record: LogRecord) -> SearchText | None:
    match record.body:
        case EventBody(type=event_type, redacted=False) as body if event_type in SEARCHED_TYPES:
            text = searched_text(event_type, orjson.loads(body.client + b"}")["content"])
            if text is None:
                return None
            return SearchText(
                record.room_id, body.event_id, SEARCHED_TYPES[event_type], body.origin_server_ts, body.sender, text
            )
        case _:
            return None

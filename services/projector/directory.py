"""The lines of the published directory from room.log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from tessera.record_consumer import AfterCommit
from tessera.records import EventBody, LogRecord, RedactionBody, StateBody
from tessera.room_summaries import load_summaries
from tessera.storage import directory
from tessera.storage.database import Transaction
from tessera.storage.directory import RoomSummary
from tessera.storage.room_reads.summaries import SUMMARY_TYPES
from tessera.storage.shards import RoomShards

CONSUMER = "directory"
_SHOWN = frozenset((*SUMMARY_TYPES, "m.room.member"))


@dataclass(frozen=True, slots=True)
class DirectoryStep:
    """Reads the rooms that records changed as they are now, one query a shard. Spec: §Published room directory."""

    shards: RoomShards

    def concerns(self, record: LogRecord) -> bool:
        """Only what the directory shows."""
        return _changes_line(record)

    async def prepare(self, records: Sequence[LogRecord]) -> list[RoomSummary]:
        """The summaries of the rooms whose lines may have changed."""
        return await load_summaries(self.shards, list(dict.fromkeys(record.room_id for record in records)))

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """A line yields to a later one only."""
        await directory.set_summaries(tx, cast("list[RoomSummary]", prepared))
        return None


def _changes_line(record: LogRecord) -> bool:
    match record.body:
        case EventBody(type=event_type, state_key=state_key):
            return state_key is not None and event_type in _SHOWN
        case StateBody() | RedactionBody():
            return True
        case _:
            return False

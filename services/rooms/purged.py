"""Telling everybody by a record that history of the room has been deleted. Spec: none; DESIGN.md section 4."""

from services.rooms.local_events import accept
from services.rooms.room_work import RoomWork
from tessera.commands import Command, Outcome
from tessera.records import RecordKind


def note_purged(work: RoomWork, command: Command) -> Outcome:
    """One record of kind PURGED: whoever holds the room's events in memory reads them again."""
    work.record(RecordKind.PURGED, None)
    return accept(work, command, ())

"""Rooms that close themselves to guests: a debt for the gateway, which takes the guests out."""

from collections.abc import Sequence

import orjson

from tessera.record_consumer import AfterCommit
from tessera.records import EventBody, LogRecord, StateBody
from tessera.storage import guest_removals
from tessera.storage.database import Database, Transaction

CONSUMER = "guest_access"
_TYPE = "m.room.guest_access"


class GuestAccessStep:
    """Notes which rooms are to be looked at. Spec: C-S API §Guest Access, "Server behaviour"."""

    def concerns(self, record: LogRecord) -> bool:
        """Whether guests may be unwelcome from here on."""
        match record.body:
            case EventBody(type=event_type, state_key=""):
                return event_type == _TYPE and not _lets_guests_in(record.body)
            case StateBody(changes=changes):
                return any(change[0] == _TYPE for change in changes)
            case _:
                return False

    async def prepare(self, records: Sequence[LogRecord]) -> None:
        """What the rooms say now is for the gateway to read."""

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """Replayed, a room is looked at once more."""
        await guest_removals.add_removals(tx, sorted({record.room_id for record in records}))
        return None

    async def look_at_partition(self, accounts: Database, partition: int) -> None:
        """Look at all rooms of a partition that have guests: after its database went back in time."""
        async with accounts.transaction() as tx:
            await guest_removals.add_removals(tx, await guest_removals.list_rooms_with_guests(tx, partition))


def _lets_guests_in(body: EventBody) -> bool:
    content = orjson.loads(body.client + b"}")["content"]
    return bool(content.get("guest_access") == "can_join")

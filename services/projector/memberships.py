"""Local users' room lists and logs from room.log, for whatever the gateway did not bring there itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.identifiers import ServerName
from tessera.fanout import Fanout
from tessera.memberships import changes_of_records
from tessera.record_consumer import AfterCommit
from tessera.records import EventBody, LogRecord, StateBody
from tessera.storage import user_log, user_rooms
from tessera.storage.database import Transaction

CONSUMER = "memberships"


@dataclass(frozen=True, slots=True)
class MembershipStep:
    """Brings the records' memberships of this server's users to their lists. Spec: C-S API §Room membership."""

    fanout: Fanout
    server_name: ServerName

    def concerns(self, record: LogRecord) -> bool:
        """Member events move memberships, and what a resolution changes without an event."""
        match record.body:
            case EventBody(membership=membership):
                return membership is not None
            case StateBody(memberships=memberships):
                return bool(memberships)
            case _:
                return False

    async def prepare(self, records: Sequence[LogRecord]) -> None:
        """Nothing: the records say it all."""

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """A row yields to a higher position only, so a replay changes nothing."""
        changes = changes_of_records(records, self.server_name)
        if not changes:
            return None
        heads = await user_rooms.apply_changes(tx, changes)
        if not heads:
            return None

        async def wake() -> None:
            await self.fanout.publish_user_wakes(user_log.wakes_of(heads))

        return wake

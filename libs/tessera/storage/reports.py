"""Reports that users make. Spec: C-S API §Reporting Content."""

from dataclasses import dataclass

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class Report:
    """A report of an event in a room, of a room, or of a user."""

    reporter: UserId
    received_ts: int  # milliseconds
    room_id: RoomId | None = None
    event_id: EventId | None = None
    reported_user: UserId | None = None
    reason: str | None = None


_ADD = """
INSERT INTO accounts.reports (reporter, room_id, event_id, reported_user, reason, received_ts)
VALUES ($1, $2, $3, $4, $5, $6) RETURNING report_id
"""


async def add_report(tx: Transaction, report: Report) -> int:
    """Keep a report; answers its number."""
    report_id: int = await tx.fetchval(
        _ADD,
        report.reporter,
        report.room_id,
        report.event_id,
        report.reported_user,
        report.reason,
        report.received_ts,
    )
    return report_id

"""Whose devices changed, and who shares no room with the user any longer, between two answers.

Spec: MSC3884; C-S API §Tracking the device list for a user.
"""

from collections.abc import Iterable, Mapping, Sequence

from matrixcore.identifiers import UserId
from services.sync.keys_changes import list_key_changes
from services.sync.room_tails import RoomTail
from services.sync.sliding.required_state import MEMBER
from services.sync.snapshot import Snapshots
from services.sync.user_states import UserState
from tessera.records import EventBody, LogRecord, StateBody
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.sync_token import Point, SyncToken


async def list_device_changes(
    snapshots: Snapshots, state: UserState, since: SyncToken, until: SyncToken, entries: Sequence[UserLogRow]
) -> tuple[set[UserId], set[UserId]]:
    """(changed, left) between two tokens: from memory while nobody comes or goes.

    Args:
        entries: of the user log, between the tokens.
    """
    if since.devices < state.device_floor or has_moves(state.joined.values(), since.positions, entries):
        return await list_key_changes(snapshots, state.user_id, since, until)
    changed = {user_id for position, user_id in state.device_news if since.devices < position <= until.devices}
    return changed, set()


def has_moves(tails: Iterable[RoomTail], base: Mapping[int, Point], entries: Iterable[UserLogRow]) -> bool:
    """Whether a membership may have changed in any of the rooms, or in the user's own list of them."""
    if any(entry.kind == UserLogKind.MEMBERSHIP for entry in entries):
        return True
    for tail in tails:
        before = base.get(tail.partition)
        if before is None or (tail.last > before.position and before.position < tail.floor):
            return True
        if tail.last > before.position and any(map(_moves_members, tail.after(before.position))):
            return True
    return False


def _moves_members(record: LogRecord) -> bool:
    body = record.body
    if isinstance(body, EventBody):
        return body.type == MEMBER
    return isinstance(body, StateBody)

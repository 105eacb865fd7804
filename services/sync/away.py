"""What an answer holds of a shard that is away: nothing, and the token says so.

The client's components of that shard stand still, so that what happens there is told when it is back. That will do
where nothing is owed of the shard but what is new in rooms that the client knows; else the request fails.

Spec: DESIGN.md sections 5 and 11.
"""

from collections.abc import Collection, Sequence

from matrixcore.identifiers import RoomId
from services.sync.lazy_members import Seen
from services.sync.room_plan import PlannedRoom
from services.sync.room_sections import ShardSections
from services.sync.sync_request import SyncRequest


def standing_still(
    request: SyncRequest,
    planned: Sequence[PlannedRoom],
    partitions: Collection[int],
    recount: Collection[RoomId],
    seen: Seen,
) -> ShardSections | None:
    """The sections of a shard that is away; None if the answer cannot do without it.

    Args:
        planned: its rooms in the answer.
        partitions: those of it that the next token names.
        recount: rooms whose unread counts have changed without a record.
    """
    since = request.since
    if since is None or request.full_state or not set(partitions) <= since.positions.keys():
        return None
    if any(one.is_new or one.is_left or one.moved_from is not None or one.room.room_id in recount for one in planned):
        return None
    heads = {partition: since.positions[partition] for partition in partitions}
    return ShardSections(heads, {}, {}, set(), set(), seen, is_away=True)

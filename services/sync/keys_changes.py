"""Whose devices changed between two sync tokens, for clients that were away. Spec: C-S API §getKeysChanges."""

from matrixcore.identifiers import RoomId, UserId
from services.sync import tokens_ahead
from services.sync.room_plan import JOIN, membership_moves
from services.sync.snapshot import MAX_LOG_ENTRIES, Snapshots
from tessera.storage import sync_accounts, sync_reads, user_log, user_rooms
from tessera.sync_token import Point, SyncToken


async def list_key_changes(
    snapshots: Snapshots, user_id: UserId, start: SyncToken, end: SyncToken
) -> tuple[set[UserId], set[UserId]]:
    """(changed, left) as the syncs from `start` to `end` told them, or somewhat more: memberships count up to now.

    Where `start` says more than PostgreSQL, what the client was told may be other than what happened: everybody there
    counts as changed.
    """
    async with snapshots.accounts.snapshot() as tx:
        overview = await sync_accounts.find_overview(tx, user_id)
        rooms = await user_rooms.list_rooms(tx, user_id)
        entries = await user_log.list_after(tx, user_id, start.user, max(start.user, end.user), MAX_LOG_ENTRIES)
    is_rewound = start.user > overview.log_head or start.devices > overview.devices_head
    moves = membership_moves(entries)
    joined = [room.room_id for room in rooms if room.membership == JOIN]
    entered = [room_id for room_id in joined if is_rewound or any(one != JOIN for one in moves.get(room_id, ()))]
    left_rooms = [room.room_id for room in rooms if room.membership != JOIN and JOIN in (moves.get(room.room_id) or ())]
    came: set[UserId] = set()
    went: set[UserId] = set()
    after: dict[RoomId, Point] = {
        room_id: point
        for room_id in joined
        if room_id not in moves and (point := start.positions.get(snapshots.shards.partition_of(room_id))) is not None
    }
    rewound: set[int] = set()
    for shard, group in snapshots.shards.group_rooms({*after, *entered, *left_rooms}).items():
        async with snapshots.shards.databases[shard].snapshot() as tx:
            here = set(group)
            stayed = {room_id: point for room_id, point in after.items() if room_id in here}
            points = {snapshots.shards.partition_of(room_id): point for room_id, point in stayed.items()}
            ahead = await sync_reads.list_rewound(tx, points) if points else frozenset()
            anew = [room_id for room_id in stayed if snapshots.shards.partition_of(room_id) in ahead]
            positions = {room_id: point.position for room_id, point in stayed.items()}
            joiners, leavers = await sync_reads.list_moved_members(tx, positions)
            known_anew = {*anew, *(one for one in entered if one in here)}
            came |= joiners | await sync_reads.list_joined_users(tx, known_anew)
            went |= leavers | await sync_reads.list_joined_users(tx, [one for one in left_rooms if one in here])
            rewound |= ahead
    tokens_ahead.tell(start, overview, rewound)
    changed, left = await snapshots.find_device_lists(user_id, start.devices, end.devices, joined, came, went)
    return (changed | {user_id} if is_rewound else changed), left

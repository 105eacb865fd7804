"""What /sync reads of rooms: many rooms of one shard in each statement, all in one snapshot.

A statement takes parallel arrays, one element a room; nothing here is asked room by room. Nothing here
judges who may see what.

Spec: C-S API §Syncing; DESIGN.md section 5.
"""

from tessera.storage.sync_reads.events import (
    EVERYTHING,
    StateRow,
    list_members_at,
    list_state_changes,
    list_states,
    list_timelines,
)
from tessera.storage.sync_reads.people import (
    list_heroes,
    list_joined_among,
    list_joined_users,
    list_moved_members,
    list_rooms_of_users,
)
from tessera.storage.sync_reads.relations import list_relations_to
from tessera.storage.sync_reads.rooms import (
    HERO_COUNT,
    RECEIPTS_PER_ROOM,
    KnownRoom,
    OwnRoom,
    ReceiptRow,
    SyncRoom,
    list_heads,
    list_own_rooms,
    list_receipts,
    list_rewound,
    list_sync_rooms,
)

__all__ = [
    "EVERYTHING",
    "HERO_COUNT",
    "RECEIPTS_PER_ROOM",
    "KnownRoom",
    "OwnRoom",
    "ReceiptRow",
    "StateRow",
    "SyncRoom",
    "list_heads",
    "list_heroes",
    "list_joined_among",
    "list_joined_users",
    "list_members_at",
    "list_moved_members",
    "list_own_rooms",
    "list_receipts",
    "list_relations_to",
    "list_rewound",
    "list_rooms_of_users",
    "list_state_changes",
    "list_states",
    "list_sync_rooms",
    "list_timelines",
]

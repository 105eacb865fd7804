"""What somebody who is not in a room yet is shown of it. Spec: C-S API §Stripped state; S-S API §Inviting to a room."""

from matrixcore.auth_events import CREATE, JOIN_RULES
from matrixcore.identifiers import RoomId, StateKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.state import list_state_keys

SHOWN: tuple[StateKey, ...] = (
    CREATE,
    ("m.room.name", ""),
    ("m.room.avatar", ""),
    ("m.room.topic", ""),
    JOIN_RULES,
    ("m.room.canonical_alias", ""),
    ("m.room.encryption", ""),
)


async def list_shown_state(tx: Transaction, room_id: RoomId, *, also: StateKey | None = None) -> list[bytes]:
    """The PDUs of that part of current state, whole as other servers want them.

    Args:
        also: one more key: the member event of who invites.
    """
    keys = SHOWN if also is None else (*SHOWN, also)
    return [row.pdu for row in (await list_state_keys(tx, room_id, list(keys))).values()]

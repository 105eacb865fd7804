"""What a client was told on a connection, room by room. Spec: MSC4186 §Connections."""

from typing import NamedTuple

from immutables import Map

from matrixcore.identifiers import RoomId
from services.sync.sliding.required_state import RequiredState
from tessera.sync_token import Point, SyncToken


class SentRoom(NamedTuple):
    """How far a client was told of a room.

    Attributes:
        membership, stay: the user's own that the client knows, and its position.
        known: up to where; None: up to the position that the `pos` has for the room's partition.
        timeline_limit: of how many newest events no earlier one is missing at the client.
        wish: what was told of its state.
        has_data, has_receipts: whether its account data and receipts were told up to `known`.
    """

    membership: str
    stay: int
    known: Point | None = None
    timeline_limit: int = 0
    wish: RequiredState = RequiredState()
    is_dm: bool = False
    has_data: bool = False
    has_receipts: bool = False


Sent = Map[RoomId, SentRoom]
NOTHING_SENT: Sent = Map()


class Told(NamedTuple):
    """What a connection was told at a `pos`.

    Attributes:
        token: None for a new connection.
    """

    token: SyncToken | None
    rooms: Sent
    generation: str = ""

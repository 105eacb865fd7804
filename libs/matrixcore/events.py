"""An event as the protocol sees it: received bytes with a typed view on top.

Spec: Room Versions §Event format; S-S API §PDUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matrixcore.identifiers import EventId, RoomId, StateKey, UserId
from matrixcore.room_versions import RoomVersionRules


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One PDU, parsed once.

    `pdu` holds the exact bytes that hashes and signatures cover (unknown fields included);
    `fields` is what they parse to and must never be changed. In room version 12 the create
    event carries no room_id; `room_id` here is always set. `auth_events` never includes the
    implied create event of version 12.
    """

    event_id: EventId
    room_id: RoomId
    type: str
    state_key: str | None
    sender: UserId
    content: Mapping[str, Any]
    origin_server_ts: int
    depth: int
    prev_events: tuple[EventId, ...]
    auth_events: tuple[EventId, ...]
    redacts: EventId | None  # from the place where the room version keeps it
    fields: Mapping[str, Any]
    pdu: bytes
    rules: RoomVersionRules

    @property
    def is_state(self) -> bool:
        return self.state_key is not None

    @property
    def state_tuple(self) -> StateKey:
        """(type, state key) of a state event; a programming error for any other."""
        assert self.state_key is not None
        return self.type, self.state_key

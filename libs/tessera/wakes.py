"""What the fan-out carries beside partition batches: wake-ups, all of them hints (DESIGN section 2.6)."""

from dataclasses import dataclass

from matrixcore.identifiers import RoomId, UserId


@dataclass(frozen=True, slots=True)
class UserWake:
    """The user log of `user_id` has reached `position`."""

    user_id: UserId
    position: int


@dataclass(frozen=True, slots=True)
class DeviceWake:
    """The stream of device changes has reached `position`; these users' devices changed."""

    position: int
    user_ids: tuple[UserId, ...]


@dataclass(frozen=True, slots=True)
class TypingChange:
    """A user began (timeout_ms > 0) or stopped (0) to type in a room."""

    room_id: RoomId
    user_id: UserId
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """A user's presence. Spec: C-S API §Presence."""

    user_id: UserId
    presence: str
    status_msg: str | None
    last_active_ms: int  # wall clock of the last activity
    currently_active: bool


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """Tokens of a user are dead: those of one device, or with None all of them."""

    user_id: UserId
    device_id: str | None = None

"""How the gateway changes a room; federation_in does it the same way."""

from tessera.room_changes import (
    COMMAND_ID_BYTES,
    COMMAND_TIMEOUT_SECONDS,
    RoomChanges,
    RoomUnavailable,
    Session,
    new_redaction,
    session_of,
)

__all__ = [
    "COMMAND_ID_BYTES",
    "COMMAND_TIMEOUT_SECONDS",
    "RoomChanges",
    "RoomUnavailable",
    "Session",
    "new_redaction",
    "session_of",
]

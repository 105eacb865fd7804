"""What a client asks for: the accepted form and the experimental one that clients speak, in one shape.

They differ in where parameters stand, how required state is written, and in a few names (MSC4186, Appendix).
Spec: MSC4186 §Request Body.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from matrixcore.identifiers import RoomId, UserId
from services.sync.sliding.required_state import RequiredState
from services.sync.sliding.room_filters import EVERYTHING, RoomFilter

MAX_LISTS = 100
MAX_SUBSCRIPTIONS = 100
MAX_RANGES = 20  # of one list, in the experimental form
MAX_ELEMENTS = 200  # of one required_state
MAX_NAMES = 200  # of one filter or extension
MAX_TIMELINE_LIMIT = 100
MAX_TO_DEVICE = 100
MAX_NAME_LENGTH = 255
MAX_BODY_BYTES = 256 * 1024
MAX_TIMEOUT_MS = 120_000


class Form(Enum):
    """Which of the two forms a request has, and its answer with it."""

    EXPERIMENTAL = "org.matrix.simplified_msc3575"
    ACCEPTED = "v4"


@dataclass(frozen=True, slots=True)
class RoomWish:
    """What is to be told of a room that a rule matches."""

    timeline_limit: int
    required_state: RequiredState


@dataclass(frozen=True, slots=True)
class ListRule:
    """A list.

    Attributes:
        ranges: first and last index, both counted; None for all rooms.
    """

    wish: RoomWish
    ranges: tuple[tuple[int, int], ...] | None = None
    filter: RoomFilter = EVERYTHING


@dataclass(frozen=True, slots=True)
class RoomScope:
    """Of which rooms an extension tells: of lists and subscriptions by name, None for all of the request's."""

    lists: frozenset[str] | None = None
    rooms: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ToDeviceWish:
    """The to-device extension. `since`: position of the last message that the client has."""

    since: int = 0
    limit: int = MAX_TO_DEVICE


@dataclass(frozen=True, slots=True)
class Extensions:
    """Which extensions are wanted; None for those that are not."""

    to_device: ToDeviceWish | None = None
    e2ee: bool = False
    account_data: RoomScope | None = None
    receipts: RoomScope | None = None
    typing: RoomScope | None = None


NO_EXTENSIONS = Extensions()


@dataclass(frozen=True, slots=True)
class SlidingRequest:
    """A request of one device.

    Attributes:
        pos: as the client sent it, "" for a new connection.
        raw: the body, by which a repeated request is known.
    """

    user_id: UserId
    device_id: str
    form: Form
    raw: bytes = b""
    pos: str = ""
    conn_id: str = ""
    txn_id: str | None = None
    timeout_ms: int = 0
    set_presence: str = "online"
    lists: Mapping[str, ListRule] = field(default_factory=dict)
    subscriptions: Mapping[RoomId, RoomWish] = field(default_factory=dict)
    extensions: Extensions = NO_EXTENSIONS


Json = dict[str, Any]

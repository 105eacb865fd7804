"""What each client was told on each of its connections, and where it is found again.

A `pos` is a sync token and, behind a dot, the connection and the generation of what it was told. What the token says
need not be remembered: a room that a connection was told up to its token's positions stands there as such, and the
generation changes only when something else happens: a room enters, falls behind, or is wanted otherwise.

The `pos` of a request, and what was answered to it, stay until one of those answers is asked for more. So a request
that is repeated gets its answer again, and an answer that was lost takes nothing with it.

Spec: MSC4186 §Connections.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from immutables import Map

from matrixcore.identifiers import RoomId, UserId
from services.sync.sliding.required_state import RequiredState
from tessera.http.errors import MatrixError
from tessera.sync_token import InvalidSyncToken, Point, SyncToken, decode_token, encode_token

MAX_PER_DEVICE = 8
MAX_CONNECTIONS = 20_000
MAX_ROOMS = 250_000  # of all connections together
MAX_ANSWERS = 4  # to one `pos`: whoever repeats a request more often has to go on from one of the newest

_POS = re.compile(r"(?P<token>[^.]+)\.(?P<connection>[A-Za-z0-9]{1,32})-(?P<generation>[0-9]{1,15})")


class UnknownPos(MatrixError):
    """The client has to begin a new connection. Spec: MSC4186 §Connections."""

    errcode = "M_UNKNOWN_POS"

    def __init__(self, message: str = "The connection is not known any longer") -> None:
        super().__init__(message)


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
    generation: int = 0


@dataclass(slots=True)
class Connection:
    """One connection.

    Attributes:
        generations: what was told, by number, the newest last.
        confirmed: the generation that the client has shown to have.
        answered: the body of the last request that was answered, and the `pos` of the answer.
    """

    name: str
    generations: OrderedDict[int, Sent] = field(default_factory=OrderedDict)
    last: int = 0
    confirmed: int = 0
    answered: tuple[bytes, str] = (b"", "")


_Key = tuple[UserId, str, str]


class Connections:
    """The connections of one process's clients, least recently used first."""

    def __init__(self, new_name: Callable[[], str]) -> None:
        self._new_name = new_name
        self._connections: OrderedDict[_Key, Connection] = OrderedDict()
        self._devices: dict[tuple[UserId, str], OrderedDict[str, None]] = {}
        self._rooms = 0

    def __len__(self) -> int:
        return len(self._connections)

    def begin(self, user_id: UserId, device_id: str, conn_id: str) -> Connection:
        """A new connection in place of the one that had its `conn_id`; the device's oldest one goes if it has many."""
        key = (user_id, device_id, conn_id)
        self._drop(key)
        names = self._devices.setdefault((user_id, device_id), OrderedDict())
        while len(names) >= MAX_PER_DEVICE:
            self._drop((user_id, device_id, next(iter(names))))
        names = self._devices.setdefault((user_id, device_id), OrderedDict())
        names[conn_id] = None
        connection = self._connections[key] = Connection(self._new_name())
        while len(self._connections) > MAX_CONNECTIONS:
            self._drop(next(iter(self._connections)))
        return connection

    def find(self, user_id: UserId, device_id: str, conn_id: str, pos: str) -> tuple[Connection, Told]:
        """The connection of a `pos` and what it was told there; what lies before that is forgotten.

        Raises:
            UnknownPos: of another device, too old, or lost.
        """
        match = _POS.fullmatch(pos)
        if match is None:
            raise UnknownPos("pos is not one of this server's")
        try:
            token = decode_token(match["token"])
        except InvalidSyncToken as error:
            raise UnknownPos(str(error)) from error
        key, generation = (user_id, device_id, conn_id), int(match["generation"])
        connection = self._connections.get(key)
        if connection is None or connection.name != match["connection"] or generation not in connection.generations:
            raise UnknownPos
        self._connections.move_to_end(key)
        self._devices[user_id, device_id].move_to_end(conn_id)
        if generation != connection.confirmed:
            # Answers to the requests before are of no use any longer: the client has this one.
            self._forget(connection, [number for number in connection.generations if number < generation])
            connection.confirmed = generation
        return connection, Told(token, connection.generations[generation], generation)

    def keep(self, connection: Connection, told: Told, rooms: Sent, token: SyncToken) -> str:
        """Remember what an answer tells after `told`; its `pos`."""
        generation = told.generation
        if rooms is not told.rooms or not connection.generations:
            connection.last += 1
            generation = connection.last
            connection.generations[generation] = rooms
            self._rooms += len(rooms)
            answers = [number for number in connection.generations if number > connection.confirmed]
            self._forget(connection, answers[:-MAX_ANSWERS])
            while self._rooms > MAX_ROOMS and len(self._connections) > 1:
                self._drop(next(iter(self._connections)))
        return f"{encode_token(token)}.{connection.name}-{generation}"

    def _forget(self, connection: Connection, numbers: list[int]) -> None:
        for number in numbers:
            self._rooms -= len(connection.generations.pop(number))

    def _drop(self, key: _Key) -> None:
        connection = self._connections.pop(key, None)
        if connection is None:
            return
        self._forget(connection, list(connection.generations))
        names = self._devices[key[0], key[1]]
        names.pop(key[2], None)
        if not names:
            del self._devices[key[0], key[1]]

"""What each client was told on each of its connections, and where it is found again.

A `pos` is a sync token and, behind a dot, the connection and the generation of what it was told. What the token says
need not be remembered: a room that a connection was told up to its token's positions stands there as such, and the
generation changes only when something else happens: a room enters, falls behind, or is wanted otherwise.

The generations are rows of the account store, so that any process answers any client; the process that a client asks
keeps them in memory too. The `pos` of a request, and what was answered to it, stay until one of those answers is asked
for more. So a request that is repeated gets its answer again, and an answer that was lost takes nothing with it.

Spec: MSC4186 §Connections.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from matrixcore.identifiers import UserId
from services.sync.sliding.sent_rooms import Sent, Told
from services.sync.sliding.told_codec import UnreadableTold, decode_sent, encode_sent
from tessera.http.errors import MatrixError
from tessera.storage import sliding_connections
from tessera.storage.database import Database
from tessera.storage.sliding_connections import MAX_ANSWERS, MAX_PER_DEVICE, ConnectionKey
from tessera.sync_token import InvalidSyncToken, SyncToken, decode_token, encode_token

MAX_CONNECTIONS = 20_000
MAX_ROOMS = 250_000  # of all connections together

_POS = re.compile(r"(?P<token>[^.]+)\.(?P<connection>[A-Za-z0-9]{1,32})-(?P<generation>[A-Za-z0-9]{1,32})")


class UnknownPos(MatrixError):
    """The client has to begin a new connection. Spec: MSC4186 §Connections."""

    errcode = "M_UNKNOWN_POS"

    def __init__(self, message: str = "The connection is not known any longer") -> None:
        super().__init__(message)


@dataclass(slots=True)
class Connection:
    """One connection.

    Attributes:
        generations: what was told, by name, the newest last.
        confirmed: the generation that the client has shown to have.
        answered: a digest of the body of the last request that was answered, and the `pos` of the answer.
    """

    key: ConnectionKey
    name: str
    generations: OrderedDict[str, Sent] = field(default_factory=OrderedDict)
    confirmed: str = ""
    answered: tuple[bytes, str] = (b"", "")


class Connections:
    """What clients were told, in the account store; here what the clients of this process were told last.

    Args:
        new_name: makes up names of connections and generations, 32 letters and digits at most.
    """

    def __init__(self, accounts: Database, new_name: Callable[[], str]) -> None:
        self._accounts = accounts
        self._new_name = new_name
        self._connections: OrderedDict[ConnectionKey, Connection] = OrderedDict()
        self._devices: dict[tuple[UserId, str], OrderedDict[ConnectionKey, None]] = {}
        self._rooms = 0

    def __len__(self) -> int:
        return len(self._connections)

    def begin(self, key: ConnectionKey) -> Connection:
        """A new connection in place of the one that had its `conn_id`."""
        connection = Connection(key, self._new_name())
        self._enter(connection)
        return connection

    async def find(self, key: ConnectionKey, pos: str) -> tuple[Connection, Told]:
        """The connection of a `pos` and what it was told there; what lies before that is forgotten.

        Raises:
            UnknownPos: of another device, too old, or lost.
            DatabaseUnavailable
        """
        match = _POS.fullmatch(pos)
        if match is None:
            raise UnknownPos("pos is not one of this server's")
        try:
            token = decode_token(match["token"])
        except InvalidSyncToken as error:
            raise UnknownPos(str(error)) from error
        generation = match["generation"]
        connection = self._connections.get(key)
        if connection is None or connection.name != match["connection"] or generation not in connection.generations:
            connection = await self._load(key, match["connection"], generation)
        self._connections.move_to_end(key)
        self._devices[key[:2]].move_to_end(key)
        if generation != connection.confirmed:
            # Answers to the requests before are of no use any longer: the client has this one.
            names = list(connection.generations)
            self._forget(connection, names[: names.index(generation)])
            connection.confirmed = generation
        return connection, Told(token, connection.generations[generation], generation)

    async def keep(self, connection: Connection, told: Told, rooms: Sent, token: SyncToken) -> str:
        """Remember what an answer tells after `told`; its `pos`.

        Raises:
            DatabaseUnavailable
        """
        generation = told.generation
        if rooms is not told.rooms or not generation:
            connection = self._present(connection)
            generation = self._new_name()
            data = encode_sent(rooms)
            async with self._accounts.reading() as tx:
                await sliding_connections.add(tx, connection.key, connection.name, generation, told.generation, data)
            connection = self._present(connection)
            self._put(connection, generation, rooms)
            names = list(connection.generations)
            after = names.index(connection.confirmed) + 1 if connection.confirmed in connection.generations else 0
            self._forget(connection, names[after:-MAX_ANSWERS])
            self._make_room()
        return f"{encode_token(token)}.{connection.name}-{generation}"

    async def _load(self, key: ConnectionKey, name: str, generation: str) -> Connection:
        """A connection that another process answered last, or this one long ago."""
        async with self._accounts.reading() as tx:
            stored = await sliding_connections.list_generations(tx, key, name)
        if all(one.generation != generation for one in stored):
            raise UnknownPos
        try:
            known = [(one.generation, decode_sent(one.told)) for one in stored]
        except UnreadableTold as error:
            raise UnknownPos from error
        connection = Connection(key, name)
        self._enter(connection)
        for earlier, rooms in known:
            self._put(connection, earlier, rooms)
        self._make_room()
        return connection

    def _present(self, connection: Connection) -> Connection:
        """The connection as it is here now: it may have had to make room meanwhile, or its client began anew.

        Raises:
            UnknownPos
        """
        present = self._connections.get(connection.key)
        if present is None:
            self._enter(connection)
            return connection
        if present.name != connection.name:
            raise UnknownPos("Another connection has begun")
        return present

    def _enter(self, connection: Connection) -> None:
        key = connection.key
        self._drop(key)
        keys = self._devices.get(key[:2], OrderedDict())
        while len(keys) >= MAX_PER_DEVICE:
            self._drop(next(iter(keys)))
        self._connections[key] = connection
        self._devices.setdefault(key[:2], keys)[key] = None
        self._make_room()

    def _put(self, connection: Connection, generation: str, rooms: Sent) -> None:
        connection.generations[generation] = rooms
        self._rooms += len(rooms) + 1

    def _forget(self, connection: Connection, generations: list[str]) -> None:
        for generation in generations:
            self._rooms -= len(connection.generations.pop(generation)) + 1

    def _make_room(self) -> None:
        while len(self._connections) > 1 and (len(self._connections) > MAX_CONNECTIONS or self._rooms > MAX_ROOMS):
            self._drop(next(iter(self._connections)))

    def _drop(self, key: ConnectionKey) -> None:
        connection = self._connections.pop(key, None)
        if connection is None:
            return
        self._forget(connection, list(connection.generations))
        keys = self._devices[key[:2]]
        del keys[key]
        if not keys:
            del self._devices[key[:2]]

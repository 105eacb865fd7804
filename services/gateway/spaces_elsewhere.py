"""What other servers tell of spaces and rooms that only they know: asked, checked, and remembered for a while.

A server is believed about the rooms that it was asked for and about the children that it names for them, and about
nothing else. What is remembered belongs to the server that said it, so that nobody can put words about somebody else's
room into another user's answer.

Spec: S-S API §Spaces, GET /hierarchy/{roomId}; C-S API §Spaces, "Server behaviour"; §Room Summaries.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
import structlog

from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, parse_room_id
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.federation.client import endpoint
from tessera.federation.errors import PeerError
from tessera.room_summaries import MAX_ALLOW_RULES
from tessera.space_children import SpaceChild, child_of

log = structlog.get_logger(__name__)

ASK_SECONDS = 6.0  # for one server
ALL_SECONDS = 15.0  # for all that one request of a client asks
MAX_REQUESTS = 60  # of one request of a client
SERVERS_EACH = 3  # asked in turn about one room
PARALLEL = 50  # requests under way at once, of all clients
MAX_ANSWER_BYTES = 4 << 20
MAX_TOLD = 500  # children of one answer, with what their space says of them
MAX_TEXT = 16 << 10
MAX_REMEMBERED = 64
MAX_REMEMBERED_BYTES = 512 << 10  # of one answer
MAX_SILENT = 5_000
REMEMBER_SECONDS = 300.0
SILENT_SECONDS = 60.0  # then a server that gave no answer about a room is asked for it again
SPACE = "m.space"
_OPEN_RULES = frozenset(("public", "knock", "knock_restricted"))
_TEXTS = ("name", "topic", "canonical_alias", "avatar_url", "room_type", "encryption", "room_version")


class SpaceClient(Protocol):
    """What is needed of `FederationClient`."""

    async def get(
        self, server: str, path: str, query: Mapping[str, Any], *, timeout_s: float = ..., max_bytes: int = ...
    ) -> dict[str, Any]:
        """GET a JSON object. Raises PeerError."""


@dataclass(frozen=True, slots=True)
class RemoteRoom:
    """A room as another server tells of it.

    Attributes:
        line: its RoomSummary, checked.
        children: in the order in which spaces show them.
    """

    line: dict[str, Any]
    children: Sequence[SpaceChild] = ()

    @property
    def is_space(self) -> bool:
        """Whether it has children that count."""
        return self.line.get("room_type") == SPACE

    @property
    def allowed(self) -> Sequence[RoomId]:
        """The rooms whose members may join it, if it is restricted."""
        allowed: Sequence[RoomId] = self.line.get("allowed_room_ids", ())
        return allowed

    def may_be_seen(self, membership: str | None, memberships: Mapping[RoomId, str]) -> bool:
        """Whether a user may look at it: who could join it or ask to, was invited, or may read it anyway.

        Args:
            membership: what the user is in it, as far as is known here.
            memberships: what the user is in the rooms of this server's.
        """
        if self.line["world_readable"] or membership in ("join", "invite"):
            return True
        if membership == "ban":
            return False
        return self.line["join_rule"] in _OPEN_RULES or any(memberships.get(name) == "join" for name in self.allowed)


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """What a server says of a room, and of those of its children of which it knows."""

    room: RemoteRoom
    told: Mapping[RoomId, RemoteRoom] = field(default_factory=dict)
    closed: frozenset[RoomId] = frozenset()


class SpacesElsewhere:
    """Asks other servers about rooms; one for all requests of this process."""

    def __init__(self, client: SpaceClient, server_name: ServerName, clock: Clock) -> None:
        self._client = client
        self._server_name = server_name
        self._clock = clock
        self._places = asyncio.Semaphore(PARALLEL)
        self._known: BoundedCache[tuple[ServerName, RoomId, bool], tuple[float, bytes]] = BoundedCache(MAX_REMEMBERED)
        self._silent: BoundedCache[tuple[ServerName, RoomId], float] = BoundedCache(MAX_SILENT)

    def begin(self, *, suggested_only: bool = False) -> "Inquiry":
        """What one request of a client may ask."""
        return Inquiry(self, suggested_only, self._clock.monotonic() + ALL_SECONDS)

    def recall(self, server: ServerName, room_id: RoomId, *, suggested_only: bool) -> RemoteAnswer | None:
        """What the server said of late."""
        known = self._known.get((server, room_id, suggested_only))
        if known is None or known[0] < self._clock.monotonic():
            return None
        return check_answer(room_id, orjson.loads(known[1]))

    def is_silent(self, server: ServerName, room_id: RoomId) -> bool:
        """Whether it is not worth while to ask: this server itself, and those that have just not answered."""
        return server == self._server_name or (self._silent.get((server, room_id)) or 0.0) > self._clock.monotonic()

    def seconds_left(self, until: float) -> float:
        """How long a request may take that is to end by then."""
        return min(ASK_SECONDS, until - self._clock.monotonic())

    async def ask(
        self, server: ServerName, room_id: RoomId, *, suggested_only: bool, until: float
    ) -> RemoteAnswer | None:
        """A server's answer; None if it has none that is of use. Both are remembered.

        Args:
            until: the time, by the monotonic clock, at which nobody waits any longer.
        """
        path = endpoint("/_matrix/federation/v1/hierarchy/{}", room_id)
        query = {"suggested_only": "true" if suggested_only else "false"}
        answer = None
        async with self._places:
            if (seconds := self.seconds_left(until)) <= 0:
                return None
            try:
                said = await self._client.get(server, path, query, timeout_s=seconds, max_bytes=MAX_ANSWER_BYTES)
                answer = check_answer(room_id, said)
            except PeerError as trouble:
                log.info("a room is not told of", room_id=room_id, server=server, reason=str(trouble))
        now = self._clock.monotonic()
        if answer is None:
            self._silent[server, room_id] = now + SILENT_SECONDS
            return None
        kept = _dump(answer)
        if len(kept) <= MAX_REMEMBERED_BYTES:
            self._known[server, room_id, suggested_only] = (now + REMEMBER_SECONDS, kept)
        return answer


class Inquiry:
    """What one request of a client has asked other servers and been told."""

    def __init__(self, spaces: SpacesElsewhere, suggested_only: bool, until: float) -> None:
        self._spaces = spaces
        self._suggested_only = suggested_only
        self._until = until
        self._left = MAX_REQUESTS
        self._told: dict[RoomId, RemoteRoom] = {}
        self._closed: set[RoomId] = set()

    async def find(self, wanted: Mapping[RoomId, Sequence[ServerName]]) -> dict[RoomId, RemoteRoom | None]:
        """The rooms as other servers tell of them, None for those that none does; side by side.

        Args:
            wanted: room -> servers that may know it, in the order in which they are asked. Rooms are looked for in
                this order as long as this inquiry may ask; the others are missing from the answer.
        """
        found: dict[RoomId, RemoteRoom | None] = {}
        asking: list[RoomId] = []
        for room_id, servers in wanted.items():
            told = self._told.get(room_id)
            if told is not None and not told.is_space:
                found[room_id] = told
            elif room_id in self._closed:
                found[room_id] = None
            elif (answer := self._recall(room_id, servers)) is not None:
                found[room_id] = self._take(answer)
            elif all(self._spaces.is_silent(server, room_id) for server in servers[:SERVERS_EACH]):
                found[room_id] = told
            elif self._left > 0:
                self._left -= 1
                asking.append(room_id)
        answers = await asyncio.gather(*(self._ask(room_id, wanted[room_id]) for room_id in asking))
        for room_id, answer in zip(asking, answers, strict=True):
            found[room_id] = self._told.get(room_id) if answer is None else self._take(answer)
        return found

    def _recall(self, room_id: RoomId, servers: Sequence[ServerName]) -> RemoteAnswer | None:
        for server in servers[:SERVERS_EACH]:
            answer = self._spaces.recall(server, room_id, suggested_only=self._suggested_only)
            if answer is not None:
                return answer
        return None

    async def _ask(self, room_id: RoomId, servers: Sequence[ServerName]) -> RemoteAnswer | None:
        """The first answer of the room's servers."""
        for server in servers[:SERVERS_EACH]:
            if self._spaces.is_silent(server, room_id) or self._spaces.seconds_left(self._until) <= 0:
                continue
            answer = await self._spaces.ask(server, room_id, suggested_only=self._suggested_only, until=self._until)
            if answer is not None:
                return answer
        return None

    def _take(self, answer: RemoteAnswer) -> RemoteRoom:
        self._told = {**answer.told, **self._told}
        self._closed |= answer.closed
        return answer.room


def check_answer(room_id: RoomId, said: Mapping[str, Any]) -> RemoteAnswer | None:
    """What an answer of /hierarchy tells; None if it is not about the room."""
    room = check_room(said.get("room"))
    if room is None or room.line["room_id"] != room_id:
        return None
    own = {child.room_id for child in room.children}
    told: dict[RoomId, RemoteRoom] = {}
    for one in _list(said.get("children"))[:MAX_TOLD]:
        child = check_room(one)
        if child is not None and child.line["room_id"] in own:
            told[child.line["room_id"]] = RemoteRoom(child.line)
    closed = own.intersection(one for one in _list(said.get("inaccessible_children")) if isinstance(one, str))
    return RemoteAnswer(room, told, frozenset(closed))


def check_room(value: object) -> RemoteRoom | None:
    """A room with its children: fields of a wrong type are left out. None if it is no room."""
    if not isinstance(value, Mapping):
        return None
    try:
        line: dict[str, Any] = {"room_id": parse_room_id(value.get("room_id"))}
    except InvalidIdentifier:
        return None
    members, rule = value.get("num_joined_members"), value.get("join_rule")
    line["num_joined_members"] = members if type(members) is int and 0 <= members < 2**53 else 0
    line["world_readable"] = value.get("world_readable") is True
    line["guest_can_join"] = value.get("guest_can_join") is True
    # Spec: PublishedRoomsChunk, "When not present, the room is assumed to be public."
    line["join_rule"] = "public" if rule is None else rule if isinstance(rule, str) else "invite"
    for name in _TEXTS:
        text = value.get(name)
        if isinstance(text, str) and len(text) <= MAX_TEXT:
            line[name] = text
    if allowed := _rooms(value.get("allowed_room_ids")):
        line["allowed_room_ids"] = allowed
    children: dict[RoomId, SpaceChild] = {}
    for event in _list(value.get("children_state"))[:MAX_TOLD]:
        if (child := _check_child(event)) is not None:
            children[child.room_id] = child
    return RemoteRoom(line, sorted(children.values(), key=lambda child: child.key))


def _check_child(event: object) -> SpaceChild | None:
    if not isinstance(event, Mapping) or event.get("type") != "m.space.child":
        return None
    content, sender, ts = event.get("content"), event.get("sender"), event.get("origin_server_ts")
    if not isinstance(content, Mapping) or not isinstance(sender, str) or type(ts) is not int or not 0 <= ts < 2**53:
        return None
    try:
        orjson.dumps(content)
    except TypeError:  # a number that no client could be told
        return None
    return child_of(event.get("state_key"), sender, ts, content)


def _rooms(value: object) -> list[RoomId]:
    rooms: dict[RoomId, None] = {}
    for name in _list(value)[:MAX_ALLOW_RULES]:
        try:
            rooms[parse_room_id(name)] = None
        except InvalidIdentifier:
            continue
    return list(rooms)


def _dump(answer: RemoteAnswer) -> bytes:
    room = {**answer.room.line, "children_state": [child.event for child in answer.room.children]}
    children = [told.line for told in answer.told.values()]
    return orjson.dumps({"room": room, "children": children, "inaccessible_children": list(answer.closed)})


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()

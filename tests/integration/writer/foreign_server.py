"""A server that has a room and answers our handshakes, without a network: in place of FederationClient and Keyring."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from writer_world import KEY, SERVER, World

from matrixcore.auth_events import auth_state_keys
from matrixcore.event_hashes import reference_hash_base64
from matrixcore.event_signing import check_event_signatures
from matrixcore.events import Event, parse_event
from matrixcore.identifiers import ServerName
from matrixcore.room_versions import EventIdFormat, RoomVersionRules
from matrixcore.verdicts import Accepted
from tessera.clock import SystemClock
from tessera.federation.errors import BadSignature, KeyNotFound, PeerRefused, PeerUnreachable
from tessera.federation.handshakes import Handshaker
from tessera.federation.joining import RoomJoiner
from tessera.room_changes import RoomChanges
from tests.fixtures.foreign_room import FAR, FAR_KEY, ForeignRoom

PUBLIC = {FAR: {FAR_KEY.key_id: FAR_KEY.public_key}, SERVER: {KEY.key_id: KEY.public_key}}


class KnownKeys:
    """The keyring of a world in which all keys are known."""

    async def verify_events(
        self, events: Sequence[Event], _rules: RoomVersionRules, *, is_asking: bool = True
    ) -> list[BadSignature | KeyNotFound | None]:
        if not is_asking:  # then they are not known yet
            return [KeyNotFound("nobody has been asked") for _ in events]
        verdicts = [check_event_signatures(event, PUBLIC) for event in events]
        return [None if isinstance(verdict, Accepted) else BadSignature(verdict.reason) for verdict in verdicts]


@dataclass(slots=True)
class Answer:
    """A body that comes in pieces."""

    pieces: Sequence[bytes]
    on_piece: Callable[[int], Any]

    async def chunks(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self.pieces):
            waited = self.on_piece(number)
            if waited is not None:
                await waited
            yield piece


@dataclass
class ForeignServer:
    """Answers make_* and send_* for one room.

    Attributes:
        asked: (method, server, path) in order.
        answer: how the answer to send_join is made of the room and the join, if not as it should be.
        on_piece: called before each piece of it; what it returns is awaited.
    """

    room: ForeignRoom
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    answer: Callable[[Event], bytes] | None = None
    on_piece: Callable[[int], Any] = lambda _number: None
    refuses: PeerRefused | None = None
    is_dead: bool = False

    async def get(self, server: str, path: str, query: Mapping[str, Any] = {}, **_: Any) -> dict[str, Any]:
        self._note("GET", server, path)
        membership = path.split("/")[4].removeprefix("make_")
        user_id = path.split("/")[6].replace("%40", "@").replace("%3A", ":")
        content = {"membership": membership}
        rules = self.room.rules
        keys = auth_state_keys("m.room.member", user_id, user_id, content, rules)
        cited, tip = [self.room.state[key] for key in keys if key in self.room.state], self.room.tip
        assert tip is not None

        def refer(event: Event) -> Any:
            if rules.event_id_format is EventIdFormat.GIVEN:
                return [event.event_id, {"sha256": reference_hash_base64(event.fields, rules)}]
            return event.event_id

        fields = {
            "type": "m.room.member",
            "room_id": self.room.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": content,
            "depth": tip.depth + 1,
            "prev_events": [refer(tip)],
            "auth_events": [refer(event) for event in cited],
            "origin_server_ts": 0,
        }
        return {"room_version": self.room.version, "event": fields}

    async def put(self, server: str, path: str, body: bytes, **_: Any) -> dict[str, Any]:
        self._note("PUT", server, path)
        event = self.room.add(parse_event(body, self.room.rules))
        if event.membership == "knock":
            return {"knock_room_state": [dict(self.room.state["m.room.create", ""].fields)]}
        return {}

    @asynccontextmanager
    async def stream_put(self, server: str, path: str, body: bytes, *_: Any, **__: Any) -> AsyncIterator[Answer]:
        self._note("PUT", server, path)
        join = parse_event(body, self.room.rules)
        content = self.answer(join) if self.answer is not None else state_answer(self.room, join)
        if join.event_id not in self.room.events:
            self.room.add(join)
        yield Answer([content[at : at + 1_000] for at in range(0, len(content), 1_000)], self.on_piece)

    def _note(self, method: str, server: str, path: str) -> None:
        self.asked.append((method, server, path.split("/")[4]))
        if self.is_dead or server != self.room.server:
            raise PeerUnreachable(f"{server} is away")
        if self.refuses is not None:
            raise self.refuses


def state_answer(room: ForeignRoom, join: Event, *, also: Sequence[Event] = (), lacks: Sequence[str] = ()) -> bytes:
    """The answer to send_join, with more state or less."""
    state = [e for e in room.state.values() if e.event_id != join.event_id and e.type not in lacks]
    return orjson.dumps(
        {
            "state": [dict(event.fields) for event in (*state, *also)],
            "auth_chain": [dict(event.fields) for event in room.auth_chain([*state, join])],
            "event": dict(join.fields),
            "origin": room.server,
        }
    )


def joiner_of(world: World, server: ForeignServer, claimant: str = "one") -> RoomJoiner:
    """What joins the server's room; accounts lie in the same database."""
    accounts = next(iter(world.shards.databases.values()))
    changes = RoomChanges(world.commands, world.shards, accounts, world.fanout, SystemClock(), world.ids)
    shaker = Handshaker(ServerName(SERVER), KEY, server, KnownKeys(), world.ids)  # type: ignore[arg-type]
    return RoomJoiner(changes, shaker, claimant)


async def forever() -> None:
    await asyncio.Event().wait()

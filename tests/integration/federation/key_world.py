"""Servers with keys, real ones on this machine, and a keyring among them."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from matrixcore.event_building import build_event
from matrixcore.events import Event
from matrixcore.identifiers import RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.server_keys import make_key_document
from matrixcore.signing import SigningKey
from tessera.clock import FakeClock
from tessera.config.sections import TrustedKeyServer
from tessera.federation.key_fetching import KeyFetcher
from tessera.federation.keyring import Keyring
from tessera.federation.own_keys import OwnKeys
from tessera.federation.signature_checks import SignatureChecker
from tessera.storage.database import Database
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.peer_world import OWN_KEY, OWN_NAME, World, answering

DAY_MS = 86_400_000
V11, V4 = ROOM_VERSIONS["11"], ROOM_VERSIONS["4"]
ROOM = RoomId("!room:us.example")


@dataclass
class KeyPeer:
    """A server with keys: a real one on this machine, or one that is away."""

    name: ServerName
    clock: FakeClock
    key: SigningKey = field(default_factory=lambda: SigningKey("1", b"p" * 32))
    old: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    document: dict[str, Any] | None = None
    queries: dict[ServerName, dict[str, Any]] = field(default_factory=dict)
    is_away: bool = False
    asked: int = 0
    asked_as_notary: list[Any] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.Response:
        if self.is_away:
            return web.json_response({}, status=502)
        if request.path.endswith("/query"):
            wanted = (await request.json())["server_keys"]
            self.asked_as_notary.append(wanted)
            found = [document for name, document in self.queries.items() if name in wanted]
            return web.json_response({"server_keys": found})
        self.asked += 1
        return web.json_response(self.document or self.own_document())

    def own_document(self) -> dict[str, Any]:
        until = self.clock.now_ms() + DAY_MS
        return make_key_document(self.name, [self.key], current={}, old=self.old, valid_until_ts=until)

    def event(self, at_ms: int, *, rules: Any = V11, key: SigningKey | None = None, text: str = "hi") -> Event:
        """A message of this server."""
        return build_event(
            rules=rules,
            room_id=ROOM,
            sender=UserId(f"@user:{self.name}"),
            event_type="m.room.message",
            state_key=None,
            content={"body": text},
            origin_server_ts=at_ms,
            depth=5,
            prev_events=[],
            auth_events=[],
            server_name=self.name,
            signing_key=key or self.key,
        )


@dataclass
class KeyWorld:
    """A keyring and the peers around it."""

    world: World
    accounts: Database
    clock: FakeClock
    authority: PeerAuthority
    stack: AsyncExitStack
    notaries: list[TrustedKeyServer] = field(default_factory=list)

    async def peer(self, name: str) -> KeyPeer:
        peer = KeyPeer(ServerName(f"{name}:8448"), self.clock)
        port = await self.stack.enter_async_context(answering(self.authority, {"*": peer}, names=(name,)))
        self.world.dns.places[name, 8448] = [("127.0.0.1", port)]
        return peer

    def keyring(self) -> Keyring:
        """A new one, as after a restart."""
        fetcher = KeyFetcher(self.world.client, self.accounts, self.clock, self.notaries)
        own = OwnKeys(OWN_NAME, [OWN_KEY], self.accounts, self.clock, configured_old={}, validity_ms=DAY_MS)
        checker = SignatureChecker()
        self.stack.callback(checker.close)
        return Keyring(self.accounts, fetcher, own, checker)

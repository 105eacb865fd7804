"""Rooms, users and clients for the tests of /sync."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
from room_writing import SERVER, WriterInHand, changes_of, running_writer
from starlette.requests import Request

from matrixcore.identifiers import EventId, RoomId, UserId
from services.sync.service import SyncService
from tessera.clock import SystemClock
from tessera.fanout import Fanout, LocalFanout, UserWake
from tessera.http.app import create_app
from tessera.http.authentication import Requester, access_token_of
from tessera.http.errors import UnknownToken
from tessera.ids import IdSource
from tessera.records import PartitionBatch
from tessera.storage import account_data, push_rules, read_positions, to_device, user_log, user_rooms
from tessera.storage.database import Database, Transaction
from tessera.storage.read_positions import ReadPosition
from tessera.storage.shards import RoomShards
from tessera.storage.to_device import OutgoingMessage

ALICE, BOB, CAROL = (UserId(f"@{name}:{SERVER}") for name in ("alice", "bob", "carol"))


class Tokens:
    """Tokens of the form "user|device"; those of ended sessions are unknown."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    async def authenticate(self, request: Request) -> Requester:
        token = access_token_of(request)
        if token in self.ended:
            raise UnknownToken
        user_id, _, device = token.partition("|")
        return Requester(UserId(user_id), device)


class SyncClient:
    """One device that remembers its token."""

    def __init__(self, http: httpx.AsyncClient, user_id: UserId, device: str) -> None:
        self._http = http
        self.user_id = user_id
        self.device = device
        self.since: str | None = None

    async def request(self, **query: Any) -> httpx.Response:
        """GET /sync; objects are sent as JSON."""
        query = {name: orjson.dumps(one).decode() if isinstance(one, dict) else one for name, one in query.items()}
        return await self.get("/sync", **query)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        """A GET of the client-server API."""
        headers = {"Authorization": f"Bearer {self.user_id}|{self.device}"}
        return await self._http.get(f"/_matrix/client/v3{path}", params=query, headers=headers)

    async def sync(self, **query: Any) -> dict[str, Any]:
        """What is new since the last sync."""
        if self.since is not None:
            query.setdefault("since", self.since)
        reply = await self.request(**query)
        assert reply.status_code == 200, reply.text
        body: dict[str, Any] = reply.json()
        self.since = body["next_batch"]
        return body


class World:
    """One database, one fan-out (or two ends of one), one or more sync services."""

    def __init__(
        self, accounts: Database, shards: RoomShards, writer: WriterInHand, fanouts: tuple[Fanout, Fanout] | None = None
    ) -> None:
        self.accounts = accounts
        self.shards = shards
        local = LocalFanout()
        self.fanout, self.heard_fanout = (local, local) if fanouts is None else fanouts
        self.clock = SystemClock()
        self.writer = writer
        self.tokens = Tokens()
        self.services: list[SyncService] = []
        self.https: list[httpx.AsyncClient] = []

    async def add_service(self) -> SyncService:
        """Start one more service on the same stores."""
        number = len(self.services) + 1
        ids = IdSource.seeded(number)
        service = SyncService(self.accounts, self.shards, self.heard_fanout, self.clock, instance=number, ids=ids)
        await service.start()
        app = create_app(routes=service.routes, state={"authenticator": self.tokens}, ids=IdSource.seeded(number))
        self.services.append(service)
        self.https.append(httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here.org"))
        return service

    def client(self, user_id: UserId, device: str = "D", service: int = 0) -> SyncClient:
        """A device that talks to one of the services."""
        return SyncClient(self.https[service], user_id, device)

    async def publish(self, *batches: PartitionBatch, project: bool = True) -> None:
        """Publish batches and bring their memberships into the user logs."""
        if project:
            await self.project(*batches)
        await self.fanout.publish_batches(batches, ())

    async def project(self, *batches: PartitionBatch) -> None:
        """Bring the memberships of batches into the user logs."""
        async with self.accounts.transaction() as tx:
            heads = await user_rooms.apply_changes(tx, changes_of(batches))
        await self.wake(heads)

    async def wake(self, heads: dict[UserId, int]) -> None:
        """Wake users whose logs moved."""
        await self.fanout.publish_user_wakes([UserWake(user_id, head) for user_id, head in heads.items()])

    async def change(self, change: Callable[[Transaction], Any]) -> None:
        """Run a change of the account store that answers new heads, and wake their users."""
        async with self.accounts.transaction() as tx:
            heads = await change(tx)
        await self.wake(heads)

    async def room(self, *members: UserId, name: str | None = None, visibility: str = "shared") -> RoomId:
        """A room that all of them are in; the first made it."""
        await self.publish(*await self.writer.create(members[0], name=name, visibility=visibility))
        room_id = list(self.writer.rooms)[-1]
        for user_id in members[1:]:
            await self.publish(await self.writer.member(room_id, user_id, "join"))
        return room_id

    async def say(self, room_id: RoomId, sender: UserId, body: str, **content: Any) -> EventId:
        """A message; its event ID."""
        batch = await self.writer.message(room_id, sender, body, **content)
        await self.publish(batch)
        return batch.records[0].event.event_id

    async def member(self, room_id: RoomId, user_id: UserId, membership: str, **more: Any) -> EventId:
        """A change of membership; its event ID."""
        batch = await self.writer.member(room_id, user_id, membership, **more)
        await self.publish(batch)
        return batch.records[0].event.event_id

    async def state(
        self, room_id: RoomId, sender: UserId, event_type: str, content: dict[str, Any], key: str = ""
    ) -> EventId:
        """A state event; its event ID."""
        batch = await self.writer.send(room_id, sender, event_type, content, state_key=key)
        await self.publish(batch)
        return batch.records[0].event.event_id

    async def set_data(self, user_id: UserId, data_type: str, content: Any, room_id: str = "") -> None:
        """Account data."""
        await self.change(lambda tx: account_data.set_content(tx, user_id, room_id, data_type, orjson.dumps(content)))

    async def set_rules(self, user_id: UserId, stored: dict[str, Any]) -> None:
        """Push rules in their stored form."""
        await self.change(lambda tx: push_rules.set_rules(tx, user_id, orjson.dumps(stored)))

    async def read(
        self, room_id: RoomId, user_id: UserId, event_id: EventId, kind: str = "m.read", thread: str = ""
    ) -> None:
        """A receipt: the own read position, and if public the room's record."""
        row = await self.shards.of_room(room_id).fetchrow(
            "SELECT anchor, sub FROM rooms.events WHERE room_id = $1 AND event_id = $2", room_id, event_id
        )
        position = ReadPosition(user_id, room_id, kind, thread, event_id, row[0], row[1], 1)
        await self.change(lambda tx: read_positions.set_positions(tx, [position]))
        if kind == "m.read":
            await self.publish(await self.writer.receipt(room_id, user_id, event_id))

    async def send_to_device(self, sender: UserId, user_id: UserId, device: str, content: Any) -> None:
        """A to-device message."""
        message = OutgoingMessage(user_id, device, orjson.dumps(content))
        await self.change(lambda tx: to_device.add_messages(tx, sender, "m.test", [message]))

    async def end_session(self, user_id: UserId, device: str) -> None:
        """A logout."""
        self.tokens.ended.add(f"{user_id}|{device}")
        entry = user_log.LogEntry(user_id, user_log.UserLogKind.SESSION_ENDED, key=device)
        await self.change(lambda tx: user_log.append(tx, [entry]))


@asynccontextmanager
async def running_world(accounts: Database, shards: RoomShards, services: int = 1) -> AsyncIterator[World]:
    """A world whose services and room writer run."""
    async with (
        running_writer(shards, SystemClock()) as writer,
        running_services(accounts, shards, writer, services) as world,
    ):
        yield world


@asynccontextmanager
async def running_services(
    accounts: Database,
    shards: RoomShards,
    writer: WriterInHand,
    services: int = 1,
    fanouts: tuple[Fanout, Fanout] | None = None,
) -> AsyncIterator[World]:
    """A world whose services run, beside a writer that does; `fanouts`: the end that sends, the end that hears."""
    world = World(accounts, shards, writer, fanouts)
    tasks = []
    for _ in range(services):
        service = await world.add_service()
        tasks.append(asyncio.create_task(service.run()))
    try:
        yield world
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for service in world.services:
            await service.stop()
        for http in world.https:
            await http.aclose()

"""Two people talk through matrix-nio, a client library that knows nothing of us."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from nio import (
    AsyncClient,
    AsyncClientConfig,
    InviteMemberEvent,
    MessageDirection,
    RedactedEvent,
    RoomMessageText,
    SyncResponse,
    TypingNoticeEvent,
)

from tests.fixtures.server_process import ServerProcess

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MESSAGES = 200
WAIT_SECONDS = 60


@dataclass
class Person:
    """A logged-in client that notes what its /sync shows."""

    client: AsyncClient
    seen: list[str] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    typing: set[str] = field(default_factory=set)
    receipts: set[tuple[str, str]] = field(default_factory=set)
    relations: list[dict[str, Any]] = field(default_factory=list)
    redacted: set[str] = field(default_factory=set)
    invites: set[str] = field(default_factory=set)
    loop: asyncio.Task[None] | None = None

    async def sync_for_ever(self) -> None:
        """Long-poll as a client does: through server restarts, from the last token it got."""
        while True:
            try:
                response: Any = await self.client.sync(timeout=5_000, since=self.client.next_batch)
            except (OSError, TimeoutError, aiohttp.ClientError):
                response = None  # the server is being killed
            if not isinstance(response, SyncResponse):
                await asyncio.sleep(0.1)
                continue
            self._note(response)
            self.changed.set()

    def _note(self, response: SyncResponse) -> None:
        self.invites.update(
            room_id
            for room_id, info in response.rooms.invite.items()
            if any(isinstance(event, InviteMemberEvent) for event in info.invite_state)
        )
        for info in response.rooms.join.values():
            for event in info.timeline.events:
                content = event.source.get("content", {})
                if isinstance(event, RedactedEvent):
                    continue
                if event.source.get("type") == "m.room.redaction":
                    self.redacted.add(event.source.get("redacts") or content["redacts"])
                elif "m.relates_to" in content:
                    self.relations.append(event.source)
                elif isinstance(event, RoomMessageText):
                    assert event.event_id not in self.event_ids, f"{event.event_id} came twice"
                    self.event_ids.append(event.event_id)
                    self.seen.append(event.body)
            for notice in info.ephemeral:
                if isinstance(notice, TypingNoticeEvent):
                    self.typing = set(notice.users)
                for receipt in getattr(notice, "receipts", ()):
                    self.receipts.add((receipt.user_id, receipt.event_id))

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until what has been synced fulfils `condition`."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            pytest.fail(f"timed out waiting for {what}")


async def insist(call: Callable[[], Awaitable[Any]], wanted: str) -> Any:
    """A client's own retry (same transaction ID) until the server has answered with what is wanted."""
    for _ in range(200):
        try:
            response = await call()
        except (TimeoutError, OSError):
            response = None
        if type(response).__name__ == wanted:
            return response
        await asyncio.sleep(0.1)
    pytest.fail(f"no {wanted}, but {response}")


@pytest.fixture
async def people(server: ServerProcess, unique: str) -> AsyncIterator[tuple[Person, Person]]:
    """Alice and Bob, registered, logged in and syncing."""
    config = AsyncClientConfig(max_timeouts=0, max_limit_exceeded=20, request_timeout=30, encryption_enabled=False)
    pair: list[Person] = []
    for name in ("alice", "bob"):
        client = AsyncClient(server.base_url, f"@{name}{unique}:{server.server_name}", config=config)
        await insist(lambda c=client, n=name: c.register(f"{n}{unique}", "a long password"), "RegisterResponse")
        await insist(lambda c=client: c.logout(), "LogoutResponse")
        await insist(lambda c=client: c.login("a long password", device_name="nio"), "LoginResponse")
        pair.append(Person(client))
    for person in pair:
        person.loop = asyncio.create_task(person.sync_for_ever())
    yield pair[0], pair[1]
    for person in pair:
        assert person.loop is not None
        person.loop.cancel()
        await asyncio.gather(person.loop, return_exceptions=True)
        await person.client.close()


async def test_a_conversation_survives_a_killed_server(server: ServerProcess, people: tuple[Person, Person]) -> None:
    """Invite, 200 messages with a SIGKILL among them, typing, receipts, edit, reaction, redaction, history, leave."""
    alice, bob = people
    created = await insist(
        lambda: alice.client.room_create(name="Interop", invite=[bob.client.user_id]), "RoomCreateResponse"
    )
    room_id = created.room_id
    await bob.until("the invite", lambda: room_id in bob.invites)
    await insist(lambda: bob.client.join(room_id), "JoinResponse")
    await bob.until("the room", lambda: room_id in bob.client.rooms)

    expected = [f"message {number}" for number in range(MESSAGES)]
    for number, text in enumerate(expected):
        sender = (alice, bob)[number % 2]
        if number == MESSAGES // 2:
            await server.kill()
            await server.start()
        await send(sender, room_id, "m.room.message", {"msgtype": "m.text", "body": text}, f"t{number}")
    for person in people:
        await person.until("all messages", lambda p=person: len(p.seen) >= MESSAGES)
        assert person.seen == expected
    assert alice.event_ids == bob.event_ids

    await alice.client.room_typing(room_id, True, 20_000)
    await bob.until("typing", lambda: alice.client.user_id in bob.typing)
    await alice.client.room_typing(room_id, False)
    await bob.until("no typing", lambda: alice.client.user_id not in bob.typing)
    target = alice.event_ids[-1]
    await bob.client.room_read_markers(room_id, fully_read_event=target, read_event=target)
    await alice.until("the receipt", lambda: (bob.client.user_id, target) in alice.receipts)

    edit = {"rel_type": "m.replace", "event_id": alice.event_ids[-2]}
    new = {"msgtype": "m.text", "body": "better"}
    await send(alice, room_id, "m.room.message", {**new, "m.new_content": new, "m.relates_to": edit}, "edit")
    reaction = {"rel_type": "m.annotation", "event_id": target, "key": "👍"}
    await send(bob, room_id, "m.reaction", {"m.relates_to": reaction}, "reaction")
    for person in people:
        await person.until("edit and reaction", lambda p=person: len(p.relations) >= 2)
        assert [event["content"]["m.relates_to"]["rel_type"] for event in person.relations] == [
            "m.replace",
            "m.annotation",
        ]
    await insist(lambda: bob.client.room_redact(room_id, target, tx_id="redaction"), "RoomRedactResponse")
    await alice.until("the redaction", lambda: target in alice.redacted)

    await check_history(alice, room_id, redacted=target)
    await insist(lambda: bob.client.room_leave(room_id), "RoomLeaveResponse")
    for person in people:
        await insist(lambda p=person: p.client.logout(), "LogoutResponse")
        assert type(await person.client.whoami()).__name__ == "WhoamiError"


async def send(person: Person, room_id: str, event_type: str, content: dict[str, Any], txn_id: str) -> None:
    """Send with retries under one transaction ID."""
    await insist(lambda: person.client.room_send(room_id, event_type, content, tx_id=txn_id), "RoomSendResponse")


async def check_history(person: Person, room_id: str, *, redacted: str) -> None:
    """Paginate back to the creation: every message once, in order, the redacted one without its content."""
    start, chunks = "", []
    while True:
        page = await insist(
            lambda s=start: person.client.room_messages(room_id, s, limit=30, direction=MessageDirection.back),
            "RoomMessagesResponse",
        )
        chunks += page.chunk
        if not page.end or not page.chunk:
            break
        start = page.end
    sources = [event.source for event in reversed(chunks)]
    assert sources[0]["type"] == "m.room.create"
    ids = [source["event_id"] for source in sources]
    assert len(ids) == len(set(ids))
    plain = [s for s in sources if s["type"] == "m.room.message" and "m.relates_to" not in s["content"]]
    assert [source["event_id"] for source in plain] == person.event_ids
    assert next(source for source in plain if source["event_id"] == redacted)["content"] == {}

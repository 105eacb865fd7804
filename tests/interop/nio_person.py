"""Someone who uses matrix-nio's own endless sync, and what came with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from nio import (
    AccountDataEvent,
    AsyncClient,
    AsyncClientConfig,
    ErrorResponse,
    Event,
    InviteEvent,
    MatrixRoom,
    Response,
    RoomMemberEvent,
    RoomMessageText,
    SyncResponse,
    ToDeviceEvent,
)
from nio.responses import UnreadNotifications

from tests.fixtures.server_process import ServerProcess

PASSWORD = "a long password"
WAIT_SECONDS = 60
CONFIG = AsyncClientConfig(max_timeout_retry_wait_time=0.5, max_limit_exceeded=20, encryption_enabled=False)

T = TypeVar("T")


class Person:
    """A logged-in client whose callbacks note what /sync brings.

    `events` holds each timeline event with its room, in the order of arrival; an event that comes twice fails the
    walk. `threads` has the newest unread counts of a room by thread root.
    """

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.events: list[tuple[str, Event]] = []
        self.invites: list[tuple[str, InviteEvent]] = []
        self.left: set[str] = set()
        self.threads: dict[str, dict[str, UnreadNotifications]] = {}
        self.account_data: list[AccountDataEvent] = []
        self.to_device: list[ToDeviceEvent] = []
        self._event_ids: set[str] = set()
        client.add_event_callback(self._note_event, Event)
        client.add_event_callback(self._note_invite, InviteEvent)
        client.add_global_account_data_callback(self.account_data.append, AccountDataEvent)
        client.add_to_device_callback(self.to_device.append, ToDeviceEvent)
        client.add_response_callback(self._note_sync, SyncResponse)

    @property
    def user_id(self) -> str:
        """As the server has it."""
        return str(self.client.user_id)

    def room(self, room_id: str) -> MatrixRoom:
        """What the client knows of a room."""
        return self.client.rooms[room_id]

    async def until(self, what: str, condition: Callable[[], T]) -> T:
        """The first true value of `condition`, looked at after every sync."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (value := condition()):
                    await self.client.synced.wait()
                return value
        except TimeoutError:
            pytest.fail(f"{self.user_id} timed out waiting for {what}: {self.heard_lately()}")

    async def joined(self, room_id: str) -> MatrixRoom:
        """Wait until the room has come."""
        return await self.until("the room", lambda: self.client.rooms.get(room_id))

    async def heard(self, event_id: str) -> Event:
        """Wait until an event has come."""
        await self.until(event_id, lambda: event_id in self._event_ids)
        return next(event for _, event in self.events if event.event_id == event_id)

    async def saw_member(self, room_id: str, user_id: str, membership: str) -> RoomMemberEvent:
        """Wait until the newest membership that came of a person is this."""

        def newest() -> RoomMemberEvent | None:
            of_person = [
                event
                for room, event in self.events
                if room == room_id and isinstance(event, RoomMemberEvent) and event.state_key == user_id
            ]
            return of_person[-1] if of_person and of_person[-1].membership == membership else None

        found = await self.until(f"{membership} of {user_id}", newest)
        assert found is not None
        return found

    async def say(self, room_id: str, body: str, **more: Any) -> str:
        """Send a text; the event's ID."""
        return await self.send(room_id, "m.room.message", {"msgtype": "m.text", "body": body, **more})

    async def send(self, room_id: str, event_type: str, content: dict[str, Any]) -> str:
        """Send an event; its ID."""
        return str(good(await self.client.room_send(room_id, event_type, content)).event_id)

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """An endpoint that nio has no function for, by the one that all its functions use."""
        headers = {"Authorization": f"Bearer {self.client.access_token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        reply = await self.client.send(method, f"/_matrix/client/v3/{path}", data, headers)
        answer = await reply.json()
        assert reply.status == 200, answer
        return answer

    def heard_lately(self) -> list[tuple[str, str, int, int]]:
        """For a failure's text: the room, the unread counts of which, and the kinds of the last events."""
        last = [(self.client.rooms[room], event) for room, event in self.events[-5:]]
        return [
            (room.display_name, event.source["type"], room.unread_notifications, room.unread_highlights)
            for room, event in last
        ]

    def bodies(self, room_id: str) -> list[str]:
        """The texts that came in a room, edits aside."""
        return [
            event.body
            for room, event in self.events
            if room == room_id and isinstance(event, RoomMessageText) and "m.new_content" not in event.source["content"]
        ]

    def _note_event(self, room: MatrixRoom, event: Event) -> None:
        assert event.event_id not in self._event_ids, f"{event.event_id} came twice"
        self._event_ids.add(event.event_id)
        self.events.append((room.room_id, event))

    def _note_invite(self, room: MatrixRoom, event: InviteEvent) -> None:
        self.invites.append((room.room_id, event))

    def _note_sync(self, response: Response) -> None:
        assert isinstance(response, SyncResponse)
        self.left.update(response.rooms.leave)
        self.left.difference_update(response.rooms.join)
        for room_id, info in response.rooms.join.items():
            self.threads[room_id] = info.unread_thread_notifications or {}


def good(response: Any) -> Any:
    """The response, unless it is an error."""
    assert not isinstance(response, ErrorResponse), response
    return response


def refused(response: Any, errcode: str) -> None:
    """Insist on an error."""
    assert isinstance(response, ErrorResponse), response
    assert response.status_code == errcode


@asynccontextmanager
async def syncing_person(server: ServerProcess, name: str) -> AsyncIterator[Person]:
    """Register someone who syncs until the end."""
    client = AsyncClient(server.base_url, f"@{name}:{server.server_name}", config=CONFIG)
    good(await client.register(name, PASSWORD, device_name="nio"))
    counting = {"timeline": {"limit": 50, "unread_thread_notifications": True}}
    filter_id = good(await client.upload_filter(room=counting)).filter_id
    person = Person(client)
    loop = asyncio.create_task(client.sync_forever(timeout=5_000, sync_filter=filter_id))
    try:
        await asyncio.wait_for(client.synced.wait(), WAIT_SECONDS)
        yield person
    finally:
        loop.cancel()
        ended = await asyncio.gather(loop, return_exceptions=True)
        await client.close()
    assert isinstance(ended[0], asyncio.CancelledError), ended

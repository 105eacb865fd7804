"""Typing and presence on their way into the queues: the newest of each subject, for services that want it and answer.

Spec: Application Service API §Pushing ephemeral data.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import orjson
import structlog

from matrixcore.identifiers import RoomId, UserId
from services.appservice.present_rooms import PresentRooms
from tessera.clock import Clock
from tessera.storage import appservice_queue
from tessera.storage.appservice_queue import NewEphemeral
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.typing_board import TypingBoard
from tessera.wakes import PresenceChange, TypingChange

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.1
EXPIRE_SECONDS = 1.0
MAX_CHANGES = 10_000  # not yet addressed
USERS_AT_ONCE = 50
ROOMS_KEPT_SECONDS = 5.0
USERS_ROOMS_KEPT_SECONDS = 60.0


class PassingFeed:
    """Hears what passes and queues it for those of `hearing` that concern it.

    Args:
        hearing: the IDs of the services of this process that want such things.
        wake: called when something was queued.
    """

    def __init__(
        self,
        accounts: Database,
        rooms: PresentRooms,
        clock: Clock,
        hearing: Callable[[], frozenset[str]],
        wake: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._rooms = rooms
        self._clock = clock
        self._hearing = hearing
        self._wake = wake
        self._board = TypingBoard(clock)
        self._typing: dict[RoomId, None] = {}
        self._presence: dict[UserId, PresenceChange] = {}
        self._heard = asyncio.Event()

    def on_typing(self, change: TypingChange) -> None:
        """A user types, or no longer does."""
        if self._board.apply(change):
            self._note_typing(change.room_id)

    def on_presence(self, change: PresenceChange) -> None:
        """A user's presence."""
        if change.user_id in self._presence or len(self._presence) < MAX_CHANGES:
            self._presence[change.user_id] = change
            self._heard.set()

    async def run(self) -> None:
        """Queue what is heard, for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXPIRE_SECONDS):
                    await self._heard.wait()
                await self._clock.sleep(GATHER_SECONDS)
            self._heard.clear()
            for room_id in self._board.expire():
                self._note_typing(room_id)
            try:
                if await self.queue():
                    self._wake()
            except DatabaseUnavailable as error:
                log.info("typing and presence not told", error=str(error))

    async def queue(self) -> bool:
        """Queue what was heard; whether it concerned anybody. Raises DatabaseUnavailable."""
        typing, self._typing = list(self._typing), {}
        presence = [self._presence.pop(user_id) for user_id in list(self._presence)[:USERS_AT_ONCE]]
        if self._presence:
            self._heard.set()
        hearing = self._hearing()
        if not hearing or not (typing or presence):
            return False
        async with self._accounts.reading() as tx:
            hearing -= await appservice_queue.list_failing(tx, sorted(hearing))
        if not hearing:
            return False
        passing = [*await self._typing_news(typing, hearing), *await self._presence_news(presence, hearing)]
        if passing:
            async with self._accounts.reading() as tx:
                await appservice_queue.add_ephemeral(tx, passing)
        return bool(passing)

    async def _typing_news(self, room_ids: list[RoomId], hearing: frozenset[str]) -> list[NewEphemeral]:
        services = await self._rooms.find(room_ids, ROOMS_KEPT_SECONDS)
        news = []
        for room_id in room_ids:
            content = {"user_ids": self._board.typists(room_id)}
            body = orjson.dumps({"type": "m.typing", "room_id": room_id, "content": content})
            news += [NewEphemeral(one, f"typing {room_id}", room_id, body) for one in services[room_id] & hearing]
        return news

    async def _presence_news(self, changes: list[PresenceChange], hearing: frozenset[str]) -> list[NewEphemeral]:
        if not changes:
            return []
        users = [change.user_id for change in changes]
        services = await self._rooms.find_of_users(users, USERS_ROOMS_KEPT_SECONDS)
        news = []
        for change in changes:
            body = orjson.dumps(self._presence_event(change))
            subject = f"presence {change.user_id}"
            news += [NewEphemeral(one, subject, RoomId(""), body) for one in services[change.user_id] & hearing]
        return news

    def _presence_event(self, change: PresenceChange) -> dict[str, object]:
        content: dict[str, object] = {
            "presence": change.presence,
            "last_active_ago": max(0, self._clock.now_ms() - change.last_active_ms),
            "currently_active": change.currently_active,
        }
        if change.status_msg is not None:
            content["status_msg"] = change.status_msg
        return {"type": "m.presence", "sender": change.user_id, "content": content}

    def _note_typing(self, room_id: RoomId) -> None:
        if len(self._typing) < MAX_CHANGES:
            self._typing[room_id] = None
            self._heard.set()

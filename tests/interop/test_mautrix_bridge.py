"""A bridge on mautrix-python's AppService: transactions, ghosts, queries and pings, as its bridges use them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from mautrix.appservice import AppService
from mautrix.appservice.state_store.file import FileASStateStore
from mautrix.types import EventType, Membership, MessageEvent, RoomID, StateEvent, UserID

from tests.fixtures.server_process import ServerProcess, free_port
from tests.interop.bridged_person import BridgedPerson, bridged_person

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
WAIT_SECONDS = 30
SERVER_NAME = "chat.example"
AS_TOKEN, HS_TOKEN = "as-token-of-signal", "hs-token-of-signal"


class Signal:
    """A small bridge: ghosts join where they are invited; what was heard is kept in its order."""

    def __init__(self, base_url: str, port: int, memory: Path) -> None:
        self.events: list[Any] = []
        self.asked: list[str] = []
        self._port = port
        self._news = asyncio.Event()
        self.service = AppService(
            server=base_url,
            domain=SERVER_NAME,
            as_token=AS_TOKEN,
            hs_token=HS_TOKEN,
            bot_localpart="signalbot",
            id="signal",
            query_user=self._query_user,  # type: ignore[arg-type]  # annotated as the HTTP handler around it
            query_alias=self._query_alias,  # type: ignore[arg-type]
            state_store=FileASStateStore(str(memory), binary=False),
            ephemeral_events=True,
        )
        self.service.matrix_event_handler(self._hear)

    async def start(self) -> None:
        await self.service.start("127.0.0.1", self._port)

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        """The first event for which it holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for event in self.events:
                    if condition(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def _hear(self, event: Any) -> None:
        self.events.append(event)
        self._news.set()
        is_member = isinstance(event, StateEvent) and event.type == EventType.ROOM_MEMBER
        if is_member and event.content.membership == Membership.INVITE:
            await self.service.intent.user(UserID(event.state_key)).ensure_joined(event.room_id)

    async def _query_user(self, user_id: str) -> dict[str, Any]:
        self.asked.append(user_id)
        await self.service.intent.user(user_id).ensure_registered()
        return {"made": True}

    async def _query_alias(self, alias: str) -> dict[str, Any]:
        self.asked.append(alias)
        await self.service.intent.create_room(alias_localpart=alias[1:].partition(":")[0], name="Signal group")
        return {"made": True}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, int]]:
    """A server that knows the bridge, and the bridge's port."""
    port = free_port()
    registration = {
        "id": "signal",
        "url": f"http://127.0.0.1:{port}",
        "as_token": AS_TOKEN,
        "hs_token": HS_TOKEN,
        "sender_localpart": "signalbot",
        "rate_limited": False,
        "receive_ephemeral": True,
        "namespaces": {
            "users": [{"exclusive": True, "regex": f"@signal_.*:{SERVER_NAME}"}],
            "aliases": [{"exclusive": True, "regex": f"#signal_.*:{SERVER_NAME}"}],
        },
    }
    path = tmp_path / "signal.yaml"
    path.write_text(yaml.safe_dump(registration))
    process = ServerProcess(tmp_path / "server", app_service_config_files=[str(path)])
    await process.start()
    yield process, port
    await process.stop()


async def test_a_mautrix_bridge(server: tuple[ServerProcess, int], unique: str, tmp_path: Path) -> None:
    process, port = server
    bridge = Signal(process.base_url, port, tmp_path / "state.json")
    await bridge.start()
    try:
        assert await bridge.service.ping_self("meow") >= 0
        async with bridged_person(process.base_url, f"alice{unique}") as alice:
            room = await _portal(bridge, alice)
            await _catch_up(bridge, alice, room)
            await _group(bridge, alice)
    finally:
        await bridge.service.stop()


async def _portal(bridge: Signal, alice: BridgedPerson) -> str:
    ghost = UserID(f"@signal_zoe:{SERVER_NAME}")
    room: str = (await alice.call("POST", "/createRoom", {"invite": [ghost], "is_direct": True}))["room_id"]
    assert bridge.asked == [ghost]
    await bridge.until(
        lambda event: event.type == EventType.ROOM_MEMBER and event.content.membership == Membership.JOIN
    )
    sent = await alice.say(room, "hello")
    heard = await bridge.until(lambda event: isinstance(event, MessageEvent) and event.content.body == "hello")
    assert (heard.event_id, heard.sender, heard.room_id) == (sent, alice.user_id, room)
    said = await bridge.service.intent.user(ghost).send_text(RoomID(room), "hello to you", timestamp=1_600_000_000_000)
    seen = await alice.call("GET", f"/rooms/{quote(room)}/event/{quote(said)}")
    assert (seen["sender"], seen["origin_server_ts"]) == (ghost, 1_600_000_000_000)
    await bridge.until(lambda event: event.event_id == said if isinstance(event, MessageEvent) else False)
    await alice.call("PUT", f"/rooms/{quote(room)}/typing/{quote(alice.user_id)}", {"typing": True, "timeout": 20_000})
    typing = await bridge.until(lambda event: event.type == EventType.TYPING)
    assert (typing.room_id, typing.content.user_ids) == (room, [alice.user_id])
    return room


async def _catch_up(bridge: Signal, alice: BridgedPerson, room: str) -> None:
    """What is said while the bridge is away comes when it is back, at once after its ping."""
    await bridge.service.stop()
    sent = [await alice.say(room, f"missed {number}") for number in range(150)]
    bridge.events.clear()
    await bridge.start()
    await bridge.service.ping_self("back")
    await bridge.until(lambda event: getattr(event, "event_id", None) == sent[-1])
    assert [event.event_id for event in bridge.events if isinstance(event, MessageEvent)] == sent


async def _group(bridge: Signal, alice: BridgedPerson) -> None:
    alias = f"#signal_friends:{SERVER_NAME}"
    found = await alice.call("GET", f"/directory/room/{quote(alias)}")
    assert bridge.asked[-1] == alias
    assert found["room_id"].startswith("!")

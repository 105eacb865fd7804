"""What other servers are told of who is online, though nothing has changed."""

from typing import Any

import orjson
import pytest

from matrixcore.identifiers import RoomId, ServerName, UserId
from services.federation_out import presence_reminders
from services.federation_out.ephemeral import EphemeralEdus
from services.federation_out.presence_reminders import ACTIVE_MS, PAGE, PresenceReminders
from services.federation_out.room_servers import RoomServers
from tessera.clock import FakeClock
from tessera.federation.policy import FederationPolicy
from tessera.storage import presence
from tessera.storage.database import Database
from tessera.storage.presence import Presence
from tessera.storage.shards import RoomShards
from tessera.wakes import PresenceChange

OWN, THERE = ServerName("own.example"), ServerName("there.example")
ROOM = RoomId("!room:own.example")
ONLINE = PAGE + 20


def user(number: int) -> UserId:
    return UserId(f"@user{number:03}:{OWN}")


class World:
    """A room of this server's users and another server."""

    def __init__(self, accounts: Database, shards: RoomShards) -> None:
        self.clock = FakeClock()
        self.accounts = accounts
        policy = FederationPolicy(OWN)
        servers = RoomServers(shards, OWN, self.clock)
        self.ephemeral = EphemeralEdus(servers, policy, self.clock, OWN, shards.partitions)
        self.ephemeral.buckets = frozenset(range(shards.partitions))
        self.reminders = PresenceReminders(accounts, self.ephemeral, self.clock)

    async def told(self) -> dict[str, dict[str, Any]]:
        """User -> what the other server is told now."""
        await self.ephemeral.address()
        edus = [orjson.loads(edu) for edu in self.ephemeral.take(THERE, 100)]
        return {push.pop("user_id"): push for edu in edus for push in edu["content"]["push"]}


@pytest.fixture
async def world(accounts: Database, shards: RoomShards, monkeypatch: pytest.MonkeyPatch) -> World:
    """Everybody is online and was active five seconds ago, but for the last three."""
    monkeypatch.setattr(presence_reminders, "PAUSE_SECONDS", 0.0)
    made = World(accounts, shards)
    users = [user(number) for number in range(ONLINE + 3)]
    room = shards.of_room(ROOM)
    await room.execute(
        "INSERT INTO rooms.room_servers (room_id, server_name, joined_count) VALUES ($1, $2, 1)", ROOM, THERE
    )
    await room.execute(
        "INSERT INTO rooms.current_state (room_id, type, state_key, event_id, anchor, membership)"
        " SELECT $1, 'm.room.member', name, '$' || name, 1, 'join' FROM unnest($2::text[]) AS users (name)",
        ROOM,
        users,
    )
    now_ms = made.clock.now_ms()
    async with accounts.transaction() as tx:
        for name in users[:-3]:
            await presence.set_presence(tx, Presence(name, "online", "here", now_ms - 5_000))
        await presence.set_presence(tx, Presence(users[-3], "offline", None, now_ms))
        await presence.set_presence(tx, Presence(users[-2], "online", None, now_ms - ACTIVE_MS))
        await presence.set_told(tx, [Presence(UserId(f"@eve:{THERE}"), "online", None, now_ms)])
    return made


async def test_who_is_about_is_told_again(world: World) -> None:
    for _ in range(2):
        await world.reminders.go_round()
        told = await world.told()
        assert sorted(told) == [user(number) for number in range(ONLINE)]
        assert told[user(0)] == {
            "presence": "online",
            "status_msg": "here",
            "last_active_ago": 5_000,
            "currently_active": True,
        }


async def test_news_that_wait_are_not_replaced_by_what_was(world: World) -> None:
    world.ephemeral.on_presence(
        PresenceChange(user(1), "unavailable", None, world.clock.now_ms(), currently_active=False)
    )
    await world.reminders.go_round()
    assert (await world.told())[user(1)]["presence"] == "unavailable"

"""Whom a room's history is asked of: first who has just let us in, then who has most users in it."""

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from tessera.storage import joins
from tessera.storage.database import Database
from tessera.storage.joins import Join
from tessera.storage.peer_rooms import list_servers

ROOM, OWN = RoomId("!room:big.example"), ServerName("own.example")
SERVERS = {"big.example": 900, "large.example": 800, "small.example": 1, "gone.example": 0, OWN: 1}


async def test_who_has_let_us_in_is_asked_before_the_large_ones(accounts: Database) -> None:
    for name, count in SERVERS.items():
        await accounts.execute("INSERT INTO rooms.room_servers VALUES ($1, $2, $3)", ROOM, name, count)
    candidates = [ServerName("small.example"), ServerName("big.example")]
    join = Join("j1", 0, ROOM, UserId(f"@a:{OWN}"), "11", EventId("$join"), b"{}", candidates, "sending")
    async with accounts.transaction() as tx:
        assert await joins.add(tx, join, "one", 10.0)
        assert await list_servers(tx, ROOM, OWN, 5) == ["big.example", "large.example", "small.example"]
        await tx.execute("UPDATE rooms.joins SET state = 'done' WHERE join_id = 'j1'")
        assert await list_servers(tx, ROOM, OWN, 2) == ["small.example", "big.example"]

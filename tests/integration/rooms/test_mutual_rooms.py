"""The rooms that two users share. Spec: C-S API §Mutual Rooms."""

from typing import Any

import httpx
import pytest
from seeded_rooms import ALICE, BOB, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway import mutual_rooms
from tessera.storage import user_rooms
from tessera.storage.database import Database
from tessera.storage.user_rooms import MembershipChange

FAR = UserId("@far:away.org")
STABLE, OLD = "/_matrix/client/v1", "/_matrix/client/unstable/uk.half-shot.msc2666/user"


@pytest.fixture
async def rooms(accounts: Database) -> list[SeededRoom]:
    """Four rooms of Alice's."""
    made = []
    for room_id in (ROOM, *(RoomId(f"!{name}:{SERVER}") for name in "abc")):
        made.append(await SeededRoom(accounts, room_id).create())
        change = MembershipChange(ALICE, room_id, "join", EventId("$m"), ALICE, 0, 1, 1)
        async with accounts.transaction() as tx:
            await user_rooms.apply_changes(tx, [change])
    return made


async def mutual(http: httpx.AsyncClient, prefix: str = STABLE, **query: Any) -> tuple[int, dict[str, Any]]:
    reply = await http.get(f"{prefix}/mutual_rooms", params=query, headers={"Authorization": f"Bearer {ALICE}|A"})
    return reply.status_code, reply.json()


async def test_rooms_shared_with_local_and_remote_users(http: httpx.AsyncClient, rooms: list[SeededRoom]) -> None:
    for room in rooms[:3]:
        await room.member(BOB, "join")
    await rooms[0].member(BOB, "leave")
    await rooms[3].member(BOB, "invite", sender=ALICE)
    await rooms[0].member(FAR, "join")
    for prefix in (STABLE, OLD):
        assert await mutual(http, prefix, user_id=BOB) == (
            200,
            {"joined": [f"!a:{SERVER}", f"!b:{SERVER}"], "count": 2},
        )
        assert await mutual(http, prefix, user_id=FAR) == (200, {"joined": [ROOM], "count": 1})
        assert await mutual(http, prefix, user_id="@nobody:x") == (200, {"joined": [], "count": 0})


async def test_pages(http: httpx.AsyncClient, rooms: list[SeededRoom], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutual_rooms, "PAGE", 3)
    for room in rooms:
        await room.member(BOB, "join")
    _, first = await mutual(http, user_id=BOB)
    assert (len(first["joined"]), first["count"]) == (3, 4)
    _, second = await mutual(http, user_id=BOB, **{"from": first["next_batch"]})
    assert "next_batch" not in second
    assert sorted(first["joined"] + second["joined"]) == sorted(room.room_id for room in rooms)
    _, old = await mutual(http, OLD, user_id=BOB, batch_token=first["next_batch"])
    assert old["joined"] == second["joined"]


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"user_id": "bob"}, "M_INVALID_PARAM"),
        ({"user_id": ALICE}, "M_INVALID_PARAM"),
        ({"user_id": BOB, "from": "é"}, "M_INVALID_PARAM"),
        ({"user_id": BOB, "from": "eHg="}, "M_INVALID_PARAM"),
    ],
)
async def test_what_is_refused(http: httpx.AsyncClient, query: dict[str, str], errcode: str) -> None:
    status, reply = await mutual(http, **query)
    assert (status, reply["errcode"]) == (400, errcode)

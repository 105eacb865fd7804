"""What administrators see of rooms."""

from collections.abc import AsyncIterator
from types import SimpleNamespace

import httpx
import pytest
from seeded_rooms import ALICE
from starlette.requests import Request

from services.gateway import admin_rooms
from services.gateway.room_routes import HOT_ROUTES, room_routers
from services.rooms.shard_writer import ShardWriter
from tessera.http.app import create_app
from tessera.http.authentication import Requester
from tessera.room_summaries import refresh_summaries
from tessera.storage import users
from tessera.storage.database import Database

ROOMS = "/_synapse/admin/v1/rooms"


class OnlyAlice:
    """Every request is Alice's, who is an administrator."""

    async def authenticate(self, _request: Request) -> Requester:
        return Requester(ALICE, "A", is_admin=True)


@pytest.fixture
async def admin(gateway: SimpleNamespace, accounts: Database, writer: ShardWriter) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        routes=[*HOT_ROUTES, *admin_rooms.routes],
        routers=[*room_routers(), admin_rooms.admin_router],
        state={"gateway": gateway, "authenticator": OnlyAlice()},
        ids=gateway.ids,
    )
    async with accounts.transaction() as tx:
        await users.add_user(tx, ALICE, password_hash=None, displayname="Alice", now_ms=0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here.org") as client:
        yield client


async def test_rooms_are_listed_with_their_sizes(admin: httpx.AsyncClient, gateway: SimpleNamespace) -> None:
    made = []
    for name in ("Garden", "Attic"):
        body = {"name": name, "preset": "public_chat", "topic": f"The {name}"}
        made.append((await admin.post("/_matrix/client/v3/createRoom", json=body)).json()["room_id"])
    await refresh_summaries(gateway.accounts, gateway.shards, made)
    page = (await admin.get(ROOMS)).json()
    assert [room["name"] for room in page["rooms"]] == ["Attic", "Garden"]
    assert page["total_rooms"] == 2
    attic = page["rooms"][0]
    assert (attic["joined_members"], attic["joined_local_members"], attic["creator"]) == (1, 1, ALICE)
    assert (attic["join_rules"], attic["version"], attic["federatable"]) == ("public", "12", True)
    first = (await admin.get(f"{ROOMS}?limit=1&dir=b")).json()
    assert ([room["name"] for room in first["rooms"]], first["next_batch"]) == (["Garden"], 1)
    found = (await admin.get(f"{ROOMS}?search_term=gard")).json()
    assert [room["room_id"] for room in found["rooms"]] == [made[0]]
    one = (await admin.get(f"{ROOMS}/{made[0]}")).json()
    assert (one["topic"], one["name"]) == ("The Garden", "Garden")
    assert (await admin.get(f"{ROOMS}/{made[0]}/members")).json() == {"members": [ALICE], "total": 1}
    assert (await admin.get(f"{ROOMS}/!nowhere:here.org")).status_code == 404

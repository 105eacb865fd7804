"""Synapse's admin endpoints about servers that are sent to, and the operator's command."""

from pathlib import Path

from services.federation_command import state_of
from tessera.storage import federation_destinations, federation_queue
from tessera.storage.federation_destinations import Failure
from tessera.storage.federation_queue import NewPdu
from tests.fixtures.whole_server import running_whole_server

PATH = "/_synapse/admin/v1/federation/destinations"


async def test_administrators_see_who_fails_and_have_them_tried_again(dsn: str, tmp_path: Path) -> None:
    async with running_whole_server(dsn, tmp_path) as server:
        admin, user = await server.register("admin"), await server.register("user")
        await server.accounts.execute("UPDATE accounts.users SET is_admin = true WHERE user_id = $1", admin.user_id)
        async with server.accounts.transaction() as tx:
            names = [f"dead{number}.invalid" for number in range(3)]
            await federation_queue.add_pdus(tx, [NewPdu(name, "!r:x", "$e") for name in names], 64)  # type: ignore[arg-type]
            await tx.execute("UPDATE accounts.federation_destinations SET due_at = now() + interval '1 hour'")
            await federation_destinations.fail(tx, [Failure(names[1], "no route", 3600)])  # type: ignore[arg-type]

        async def get(path: str = "", token: str = admin.token, **query: str) -> tuple[int, dict[str, object]]:
            reply = await server.http.get(PATH + path, headers={"Authorization": f"Bearer {token}"}, params=query)
            return reply.status_code, reply.json()

        assert (await get(token=user.token))[0] == 403
        status, page = await get(limit="2")
        assert (status, page["total"], page["next_token"]) == (200, 3, "2")
        status, one = await get(f"/{names[1]}")
        assert (status, one["retry_interval"]) == (200, 3_600_000)
        assert one["failure_ts"]
        assert (await get("/unknown.invalid"))[0] == 404
        status, rooms = await get(f"/{names[1]}/rooms")
        assert (rooms["rooms"], rooms["total"]) == ([{"room_id": "!r:x"}], 1)
        headers = {"Authorization": f"Bearer {admin.token}"}
        assert (await server.http.post(f"{PATH}/{names[1]}/reset_connection", headers=headers)).status_code == 200
        assert (await server.http.post(f"{PATH}/{names[0]}/reset_connection", headers=headers)).status_code == 400
        async with server.accounts.reading() as tx:
            after = await federation_destinations.find_status(tx, names[1])  # type: ignore[arg-type]
        assert after is not None
        assert state_of(after) in ("sending", "failing")

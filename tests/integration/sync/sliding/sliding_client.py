"""A client of sliding sync for the tests, in the form that clients speak today."""

from typing import Any

import httpx
from sync_world import World

from matrixcore.identifiers import UserId

EXPERIMENTAL = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
ACCEPTED = "/_matrix/client/v4/sync"

Json = dict[str, Any]


def wish(limit: int = 10, *state: tuple[str, str]) -> Json:
    """What is wanted of a room."""
    return {"timeline_limit": limit, "required_state": [list(pair) for pair in state]}


def one_list(last: int = 19, limit: int = 10, *state: tuple[str, str], **filters: Any) -> Json:
    """`lists` with one list called a."""
    rule = {"ranges": [[0, last]], **wish(limit, *state)}
    if filters:
        rule["filters"] = filters
    return {"a": rule}


class SlidingClient:
    """One connection that remembers its pos."""

    def __init__(
        self, world: World, user_id: UserId, device: str = "D", *, conn_id: str = "", service: int = 0
    ) -> None:
        self._http: httpx.AsyncClient = world.https[service]
        self.user_id = user_id
        self.device = device
        self.conn_id = conn_id
        self.pos: str | None = None

    async def request(self, path: str = EXPERIMENTAL, *, content: bytes | None = None, **body: Any) -> httpx.Response:
        """POST /sync; `pos`, `timeout` and `set_presence` where the form has them."""
        query: Json = {}
        if path == EXPERIMENTAL:
            query = {name: body.pop(name) for name in ("pos", "timeout", "set_presence") if name in body}
        headers = {"Authorization": f"Bearer {self.user_id}|{self.device}"}
        if self.conn_id:
            body.setdefault("conn_id", self.conn_id)
        more: Json = {"json": body} if content is None else {"content": content}
        return await self._http.post(path, params=query, headers=headers, **more)

    async def sync(self, path: str = EXPERIMENTAL, **body: Any) -> Json:
        """What is new since the last answer."""
        if self.pos is not None:
            body.setdefault("pos", self.pos)
        reply = await self.request(path, **body)
        assert reply.status_code == 200, reply.text
        answer: Json = reply.json()
        self.pos = answer["pos"]
        return answer


def bodies(room: Json) -> list[str]:
    """What was said in a room's timeline."""
    return [event["content"].get("body", event["type"]) for event in room.get("timeline", [])]


def state_of(room: Json) -> dict[tuple[str, str], Json]:
    """The contents of a room's required state."""
    return {(event["type"], event["state_key"]): event.get("content") for event in room.get("required_state", [])}

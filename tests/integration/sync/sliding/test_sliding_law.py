"""The law of sliding sync: whatever the windows and whichever answers are lost, a client learns what there is.

On the random histories of /sync's own law, with processes that lose and repeat hints: each client sees each event of
a room once and in order, or is told of the gap; at the end its state is the room's. Clients go from one process to
the other.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import rule
from sliding_client import ACCEPTED, EXPERIMENTAL, SlidingClient
from test_sync_law import USERS, SyncLaw, run_law

from matrixcore.identifiers import UserId
from tessera.embedded_postgres import EmbeddedPostgres

EXAMPLES = 8
STEPS = 40
WIDE = 99
_CURRENT = "SELECT room_id, type, state_key, event_id FROM rooms.current_state"
_JOINED = "SELECT room_id FROM accounts.user_rooms WHERE user_id = $1 AND membership = 'join'"

State = dict[tuple[str, str], str]


class WindowClient:
    """What a client of sliding sync knows from its answers."""

    def __init__(self, user_id: UserId, path: str) -> None:
        self.user_id = user_id
        self.path = path
        self.pos: str | None = None
        self.memberships: dict[str, str] = {}
        self.states: dict[str, State] = {}
        self.timelines: dict[str, list[int]] = {}  # positions, without a gap

    def body(self, last: int, limit: int) -> dict[str, Any]:
        """A request with one window."""
        if self.path == ACCEPTED:
            wish: dict[str, Any] = {"range": [0, last], "required_state": {"include": [{}]}}
        else:
            wish = {"ranges": [[0, last]], "required_state": [["*", "*"]]}
        return {"lists": {"window": {"timeline_limit": limit, **wish}}}

    def apply(self, answer: dict[str, Any], positions: dict[str, dict[str, int]]) -> None:
        """Take an answer."""
        for room_id, room in answer["rooms"].items():
            self.memberships[room_id] = room["membership"]
            if room.get("initial"):
                self.states[room_id] = {}
                self.timelines.pop(room_id, None)
            state = self.states.setdefault(room_id, {})
            for event in room.get("required_state", ()):
                key = (event["type"], event["state_key"])
                if "content" in event:
                    state[key] = event["event_id"]
                else:
                    state.pop(key, None)
            if "timeline" in room:
                self._take_timeline(room_id, room, positions[room_id])
        self.pos = answer["pos"]

    def _take_timeline(self, room_id: str, room: dict[str, Any], positions: dict[str, int]) -> None:
        order = [positions[event["event_id"]] for event in room["timeline"]]
        assert order == sorted(set(order))
        assert room["num_live"] <= len(order)
        if order:  # nothing is left out within a timeline
            assert sorted(one for one in positions.values() if order[0] <= one <= order[-1]) == order
        known = self.timelines.get(room_id)
        if room.get("expanded_timeline") or room.get("unstable_expanded_timeline"):
            assert known is None or not order or order[-1] >= known[-1]
            self.timelines[room_id] = order
        elif room["limited"] or known is None:
            self.timelines[room_id] = order
        elif order:
            between = sorted(one for one in positions.values() if known[-1] < one <= order[-1])
            assert between == order, "events are missing or come twice"
            known += order
        if not self.timelines[room_id]:
            del self.timelines[room_id]


class SlidingLaw(SyncLaw):
    """The same histories; clients with windows."""

    compare_heads = None

    def __init__(self) -> None:
        super().__init__()
        self.windows = [WindowClient(user_id, path) for user_id in USERS for path in (EXPERIMENTAL, ACCEPTED)]

    @rule(
        number=st.integers(0, 5),
        service=st.integers(0, 1),
        last=st.sampled_from([0, 1, WIDE]),
        limit=st.sampled_from([1, 3, 30]),
        is_lost=st.booleans(),
    )
    def sync(self, number: int, service: int, last: int, limit: int, is_lost: bool) -> None:
        client = self.windows[number]
        self._do(self._ask(client, service, last, limit, is_lost=is_lost))

    async def _ask(self, client: WindowClient, service: int, last: int, limit: int, *, is_lost: bool = False) -> bool:
        """Sync once; whether anything was new."""
        http = SlidingClient(self.world, client.user_id, f"D{self.windows.index(client)}", service=service)
        body = client.body(last, limit)
        if client.pos is not None:
            body["pos"] = client.pos
        reply = await http.request(client.path, **body)
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        if not is_lost:
            client.apply(answer, self.positions)
        return bool(answer["rooms"])

    async def _compare(self) -> None:
        await self._project()
        for service in self.world.services:
            await service.instance.compare()
            await service.instance.feed.repair(list(service.instance.feed.heads))
        current: dict[str, State] = {}
        for room_id, event_type, state_key, event_id in await self.database.fetch(_CURRENT):
            current.setdefault(room_id, {})[event_type, state_key] = event_id
        for client in self.windows:
            for turn in range(10):
                if not await self._ask(client, turn % 2, WIDE, 3) and turn:
                    break
            joined = {row[0] for row in await self.database.fetch(_JOINED, client.user_id)}
            assert {room_id for room_id, one in client.memberships.items() if one == "join"} == joined
            for room_id in joined:
                self._compare_room(client, room_id, current[room_id])

    def _compare_room(self, client: WindowClient, room_id: str, current: State) -> None:
        known = client.states[room_id]
        if client.path == EXPERIMENTAL:  # that a key lost its event, it has no words for
            known = {key: event_id for key, event_id in known.items() if key in current}
        assert known == current
        newest = max(self.positions[room_id].values())
        assert client.timelines[room_id][-1] == newest
        assert len(client.timelines[room_id]) >= min(3, len(self.positions[room_id]))


@pytest.mark.timeout(300)
def test_clients_with_windows_learn_what_there_is(postgres: EmbeddedPostgres) -> None:
    run_law(SlidingLaw, postgres, examples=EXAMPLES, steps=STEPS)

"""Clients that change rooms and repeat what failed, and clients that listen and remember all they were told."""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote

import orjson
from sim_cluster import SimCluster
from sim_process import ProcessDied

RETRY_SECONDS = 0.3
GIVE_UP = 12  # tries of one request
API = "/_matrix/client/v3"


@dataclass(slots=True)
class Ledger:
    """What the servers said about each request that has a transaction ID.

    Attributes:
        accepted: transaction ID -> event ID.
        refused: told that it did not happen and will not (403, or 503 and not tried again).
        unknown: no answer; either is right.
        denied: requests that never ended.
    """

    accepted: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    denied: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Talker:
    """A user who does random things, one after the other."""

    cluster: SimCluster
    user_id: str
    users: list[str]
    rooms: list[str]
    ledger: Ledger
    random: Random
    number: int = 0

    @property
    def token(self) -> str:
        return f"{self.user_id}|D"

    async def make_room(self, **more: Any) -> str:
        """A room that everybody may find and enter."""
        others = [user for user in self.users if user != self.user_id]
        body = {"preset": "public_chat", "visibility": "public", "invite": others, **more}
        while True:
            try:
                status, answer = await self.cluster.ask("gateway", self.token, "POST", f"{API}/createRoom", body)
            except ProcessDied:
                continue
            if status == 200:
                room_id: str = answer["room_id"]
                return room_id
            await asyncio.sleep(RETRY_SECONDS)

    async def run(self, actions: int) -> None:
        """Do so many things."""
        for _ in range(actions):
            await asyncio.sleep(self.random.choice((0, 0.01, 0.2, 2)))
            await self._act(self.random.choice(self.rooms))

    async def chat(self, room_id: str, messages: int) -> None:
        """Say things in one room, beside everything else."""
        path = f"{API}/rooms/{quote(room_id)}/send/m.room.message"
        for _ in range(messages):
            await asyncio.sleep(self.random.choice((0.01, 0.2, 2, 4)))
            await self._with_txn("chat", path, {"msgtype": "m.text", "body": "x"})

    async def _act(self, room_id: str) -> None:
        room = f"{API}/rooms/{quote(room_id)}"
        other = self.random.choice([user for user in self.users if user != self.user_id])
        kind = self.random.choices(
            ("say", "mention", "topic", "rename", "leave", "join", "invite", "kick", "redact", "read"),
            (12, 2, 2, 1, 1, 3, 1, 1, 2, 2),
        )[0]
        if kind in ("say", "mention"):
            more = {"m.mentions": {"user_ids": [other]}} if kind == "mention" else {}
            await self._with_txn("say", f"{room}/send/m.room.message", {"msgtype": "m.text", "body": "x", **more})
        elif kind == "redact" and self.ledger.accepted:
            event_id = self.random.choice(list(self.ledger.accepted.values()))
            await self._with_txn("redact", f"{room}/redact/{quote(event_id)}", {})
        elif kind == "topic":
            await self._repeat("PUT", f"{room}/state/m.room.topic", {"topic": str(self.random.random())})
        elif kind == "rename":
            body = {"membership": "join", "displayname": str(self.random.random())}
            await self._repeat("PUT", f"{room}/state/m.room.member/{quote(self.user_id)}", body)
        elif kind in ("leave", "join"):
            await self._repeat("POST", f"{room}/{kind}", {})
        elif kind in ("invite", "kick"):
            await self._repeat("POST", f"{room}/{kind}", {"user_id": other})
        elif kind == "read" and self.ledger.accepted:
            event_id = self.random.choice(list(self.ledger.accepted.values()))
            await self._repeat("POST", f"{room}/receipt/m.read/{quote(event_id)}", {})

    async def _with_txn(self, kind: str, path: str, body: Any) -> None:
        self.number += 1
        txn_id = f"{self.user_id}-{kind}-{self.number}"
        persistent = self.random.random() < 0.8
        uncertain = False
        for _ in range(GIVE_UP):
            try:
                status, answer = await self.cluster.ask("gateway", self.token, "PUT", f"{path}/{quote(txn_id)}", body)
            except ProcessDied as died:
                self._note(died)
                uncertain = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if status == 200:
                known = self.ledger.accepted.setdefault(txn_id, answer["event_id"])
                assert known == answer["event_id"], f"law 1: {txn_id} has two answers"
                if self.random.random() < 0.1:
                    continue  # the answer was lost on its way: the client asks again
                return
            if status < 500:
                # After a lost answer it may have happened, and somebody may have been kicked since.
                if not uncertain:
                    self.ledger.refused.add(txn_id)
                return
            assert status == 503, (status, answer)
            # 503: it has not happened and will not, whatever became of tries that got no answer: they have the same id.
            uncertain = False
            if not persistent:
                break
            await asyncio.sleep(RETRY_SECONDS)
        if txn_id in self.ledger.accepted:
            return
        if uncertain:
            self.ledger.unknown.add(txn_id)
        else:
            self.ledger.refused.add(txn_id)

    async def _repeat(self, method: str, path: str, body: Any) -> None:
        for _ in range(GIVE_UP):
            try:
                status, answer = await self.cluster.ask("gateway", self.token, method, path, body)
            except ProcessDied as died:
                self._note(died)
            else:
                if status < 500:
                    return
                assert status == 503, (status, answer)
            await asyncio.sleep(RETRY_SECONDS)

    def _note(self, died: ProcessDied) -> None:
        if "no answer since" in str(died):
            self.ledger.denied.append(str(died))


@dataclass(slots=True)
class Listener:
    """A client that syncs for ever, from one instance to the other, and keeps each answer."""

    cluster: SimCluster
    user_id: str
    random: Random
    limit: int
    answers: list[dict[str, Any]] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    since: str | None = None

    @property
    def token(self) -> str:
        return f"{self.user_id}|L{self.limit}"

    async def run(self) -> None:
        """Sync until cancelled; now and then a request is asked twice, as by an impatient client."""
        while True:
            timeout_ms = self.random.choice((0, 100, 5_000, 30_000))
            await self.sync_once(timeout_ms)
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.choice((0.05, 1, 8)))

    async def sync_once(self, timeout_ms: int = 0) -> bool:
        """One /sync; whether it told anything. A failure counts as news."""
        answer = await self.ask(timeout_ms, self.since)
        if answer is None:
            await asyncio.sleep(RETRY_SECONDS)
            return True
        if self.random.random() < 0.05:
            return True  # the answer was lost on its way: the client asks again with its old token
        self.answers.append(answer)
        self.since = answer["next_batch"]
        return "rooms" in answer

    async def ask(self, timeout_ms: int, since: str | None) -> dict[str, Any] | None:
        """An answer, or None if there was none."""
        wanted = orjson.dumps({"room": {"timeline": {"limit": self.limit}}}).decode()
        query: dict[str, Any] = {"timeout": timeout_ms, "filter": wanted}
        if since is not None:
            query["since"] = since
        try:
            status, answer = await self.cluster.ask("sync", self.token, "GET", f"{API}/sync", None, **query)
        except ProcessDied as died:
            if "no answer since" in str(died):
                self.denied.append(str(died))
            return None
        assert status in (200, 503), (status, answer)
        return answer if status == 200 else None

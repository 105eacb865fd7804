"""Device keys and one-time keys of other servers' users.

Lists of users who share a room with somebody here are kept while their servers tell of changes (federation_in);
everybody else's server is asked each time. Servers are asked side by side, all of them for a few seconds at most.

Spec: S-S API §End-to-End Encryption, §Device Management; C-S API §Key management API.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import orjson
import structlog

from matrixcore.identifiers import ServerName, UserId, server_of
from tessera.federation.device_answers import MAX_KEYS_BYTES, check_device, check_signing_key, is_device_id
from tessera.federation.errors import PeerError
from tessera.storage import remote_devices
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

DEFAULT_SECONDS = 10.0
MAX_SECONDS = 10.0
PARALLEL_SERVERS = 50
MAX_ANSWER_BYTES = 8 << 20
QUERY_PATH = "/_matrix/federation/v1/user/keys/query"
CLAIM_PATH = "/_matrix/federation/v1/user/keys/claim"
Answer = Mapping[str, Any] | None
Question = Callable[[], Coroutine[Any, Any, Answer]]
UNREACHABLE = {"status": 503, "message": "The server of these users cannot be reached"}


class KeyClient(Protocol):
    """What is needed of `FederationClient`."""

    async def post(
        self, server: str, path: str, body: Mapping[str, Any], *, timeout_s: float = ..., max_bytes: int = ...
    ) -> dict[str, Any]:
        """POST a JSON object. Raises PeerError."""


@dataclass(slots=True)
class RemoteAnswer:
    """Keys as clients are served them: JSON objects as bytes."""

    devices: dict[UserId, dict[str, bytes]] = field(default_factory=dict)
    master: dict[UserId, bytes] = field(default_factory=dict)
    self_signing: dict[UserId, bytes] = field(default_factory=dict)
    failures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """Finds keys of users of other servers."""

    accounts: Database
    shards: RoomShards
    client: KeyClient
    server_name: ServerName

    async def query(self, asked: Mapping[UserId, Sequence[str]], seconds: float = DEFAULT_SECONDS) -> RemoteAnswer:
        """Devices and cross-signing keys; of a server that does not answer, what was known of its users.

        Args:
            asked: user -> device IDs, none for all devices.
            seconds: for all servers together.
        """
        answer = RemoteAnswer()
        if not asked:
            return answer
        sharing: set[UserId] = set()
        for database in self.shards.databases.values():
            async with database.reading() as tx:
                sharing |= await remote_devices.list_sharing(tx, list(asked), self.server_name)
        async with self.accounts.reading() as tx:
            lists = await remote_devices.list_lists(tx, list(asked))
            kept = await remote_devices.list_devices(tx, list(lists)) if lists else {}
        fresh = {user_id for user_id, one in lists.items() if not one.stale and user_id in sharing}
        missing = [user_id for user_id in asked if user_id not in fresh]
        by_server = _by_server(missing)
        bodies = {
            server: {"device_keys": {user_id: list(asked[user_id]) for user_id in users}}
            for server, users in by_server.items()
        }
        answers = await self._ask_all(QUERY_PATH, bodies, min(seconds, MAX_SECONDS))
        for server, users in by_server.items():
            found = answers[server]
            if found is None:
                answer.failures[server] = UNREACHABLE
            for user_id in users:
                if found is not None:
                    _take_answer(answer, user_id, asked[user_id], found)
                elif user_id in lists and user_id in sharing:
                    fresh.add(user_id)  # old, and better than nothing
        for user_id in fresh:
            _take_kept(answer, lists[user_id], kept.get(user_id, {}), asked[user_id])
        if wanted := sorted(sharing.intersection(missing)):
            async with self.accounts.transaction() as tx:
                await remote_devices.ask_for(tx, wanted)
        return answer

    async def claim(
        self, asked: Mapping[UserId, Mapping[str, str]], seconds: float = DEFAULT_SECONDS
    ) -> tuple[dict[UserId, dict[str, dict[str, bytes]]], dict[str, Any]]:
        """(user -> device -> key name -> key, failures): a one-time key of each device.

        Args:
            asked: user -> device ID -> algorithm.
        """
        claimed: dict[UserId, dict[str, dict[str, bytes]]] = {}
        failures: dict[str, Any] = {}
        by_server = _by_server(asked)

        def body(users: Sequence[UserId]) -> dict[str, Any]:
            return {"one_time_keys": {user_id: dict(asked[user_id]) for user_id in users}}

        bodies = {server: body(users) for server, users in by_server.items()}
        answers = await self._ask_all(CLAIM_PATH, bodies, min(seconds, MAX_SECONDS))
        for server, users in by_server.items():
            found = answers[server]
            if found is None:
                failures[server] = UNREACHABLE
                continue
            keys = _object(found.get("one_time_keys"))
            for user_id in users:
                for device_id, algorithm in asked[user_id].items():
                    one = _one_key(_object(_object(keys.get(user_id)).get(device_id)), algorithm)
                    if one is not None:
                        claimed.setdefault(user_id, {})[device_id] = one
        return claimed, failures

    async def _ask_all(
        self, path: str, bodies: Mapping[ServerName, Mapping[str, Any]], seconds: float
    ) -> dict[ServerName, Answer]:
        return await _gathered(
            {server: partial(self._ask, server, path, body, seconds) for server, body in bodies.items()}, seconds
        )

    async def _ask(self, server: ServerName, path: str, body: Mapping[str, Any], seconds: float) -> Answer:
        try:
            return await self.client.post(server, path, body, timeout_s=seconds, max_bytes=MAX_ANSWER_BYTES)
        except PeerError as error:
            log.info("keys of another server not to be had", server=server, error=str(error))
            return None


async def _gathered(asking: Mapping[ServerName, Question], seconds: float) -> dict[ServerName, Answer]:
    """Each server's answer, so many at once; None for those that have none in time."""
    places = asyncio.Semaphore(PARALLEL_SERVERS)
    answers: dict[ServerName, Answer] = dict.fromkeys(asking)

    async def one(server: ServerName, ask: Question) -> None:
        async with places:
            answers[server] = await ask()

    # Dead servers hold their places as long as they may: the others must not wait for them one after another.
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for server, ask in asking.items():
                group.create_task(one(server, ask))
    return answers


def _take_answer(answer: RemoteAnswer, user_id: UserId, devices: Sequence[str], found: Mapping[str, Any]) -> None:
    """What a server says of one of the users it was asked for."""
    given = _object(_object(found.get("device_keys")).get(user_id))
    served = answer.devices.setdefault(user_id, {})
    for device_id, keys in list(given.items())[: remote_devices.MAX_DEVICES]:
        if devices and device_id not in devices:
            continue
        if is_device_id(device_id) and (checked := check_device(user_id, device_id, keys)) is not None:
            served[device_id] = checked
    master = check_signing_key(user_id, "master", _object(found.get("master_keys")).get(user_id))
    self_signing = check_signing_key(user_id, "self_signing", _object(found.get("self_signing_keys")).get(user_id))
    if master is not None:
        answer.master[user_id] = master
    if self_signing is not None:
        answer.self_signing[user_id] = self_signing


def _take_kept(
    answer: RemoteAnswer, known: remote_devices.RemoteList, kept: Mapping[str, bytes], devices: Sequence[str]
) -> None:
    answer.devices[known.user_id] = {name: keys for name, keys in kept.items() if not devices or name in devices}
    if known.master_key is not None:
        answer.master[known.user_id] = known.master_key
    if known.self_signing_key is not None:
        answer.self_signing[known.user_id] = known.self_signing_key


def _one_key(given: Mapping[str, Any], algorithm: str) -> dict[str, bytes] | None:
    """The first key of the algorithm that was asked for; a server must not choose another one."""
    for name, key in given.items():
        if name.startswith(f"{algorithm}:") and isinstance(key, str | dict):
            try:
                dumped = orjson.dumps(key)
            except TypeError:
                return None
            return {name: dumped} if len(dumped) <= MAX_KEYS_BYTES else None
    return None


def _by_server(users: Iterable[UserId]) -> dict[ServerName, list[UserId]]:
    found: dict[ServerName, list[UserId]] = {}
    for user_id in users:
        found.setdefault(server_of(user_id), []).append(user_id)
    return found


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

"""Users and aliases that application services make when somebody asks for them.

A name in a service's namespace that nobody has yet: the service is asked, makes it by the client-server API if it
likes, and answers. Whoever asks waits, for a bounded time; several who ask for the same name ask once.

Spec: Application Service API §Querying.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import Enum

import structlog

from matrixcore.identifiers import RoomAlias, RoomId, ServerName, UserId
from tessera.appservice_client import AppServiceClient, AppServiceFailed
from tessera.appservices import AppServices, Registration
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.http.errors import Exclusive, MatrixError
from tessera.records import Receipt
from tessera.storage import appservice_queue, profiles
from tessera.storage.appservice_queue import NewEphemeral
from tessera.storage.database import Database

log = structlog.get_logger(__name__)

TRIES = 3
PAUSE_SECONDS = 0.5
TOTAL_SECONDS = 20.0
KEPT_SECONDS = 5.0  # for which an answer that did not help is remembered
MAX_KEPT = 2_000
MAX_ASKING = 64  # names at once
MAX_USERS = 10  # of one request that are asked for at once

_Ask = Callable[[Registration, str], Awaitable[bool]]


class Answer(Enum):
    """What came of a question."""

    MADE = "made"
    UNKNOWN = "unknown"
    SILENCE = "silence"


class BridgedNames:
    """Asks application services for names."""

    def __init__(
        self,
        services: AppServices,
        client: AppServiceClient,
        accounts: Database,
        clock: Clock,
        server_name: ServerName,
    ) -> None:
        self._all = services
        self._services = services.reachable
        self._client = client
        self._accounts = accounts
        self._clock = clock
        self._suffix = f":{server_name}"
        self._asking: dict[str, asyncio.Future[Answer]] = {}
        self._answers: BoundedCache[str, tuple[float, Answer]] = BoundedCache(MAX_KEPT)

    def private_receipts(self, receipts: Sequence[tuple[RoomId, Receipt]]) -> list[NewEphemeral]:
        """What is to be queued of private receipts. Spec: §Pushing ephemeral data."""
        hearing = [one for one in self._services if one.receive_ephemeral]
        return [
            appservice_queue.receipt_news(one.service_id, room_id, receipt)
            for room_id, receipt in receipts
            for one in hearing
            if one.has_user(receipt.user_id)
        ]

    def check_alias(self, alias: RoomAlias, service_id: str | None) -> None:
        """Let nobody make or delete an alias of somebody else's.

        Args:
            service_id: the application service that wants to; None for a person.

        Raises:
            Exclusive: another service has the alias for itself, or the service does not have it in a namespace.
        """
        if self._all.is_alias_claimed(alias, service_id):
            raise Exclusive("The alias is reserved by an application service")
        if service_id is not None:
            service = self._all.find_by_id(service_id)
            if service is None or not service.has_alias(alias):
                raise Exclusive("The alias is not in a namespace of this application service")

    async def make_alias(self, alias: RoomAlias) -> bool:
        """Let a service make a room for a local alias that leads nowhere; whether it did.

        Raises:
            MatrixError: 408, there is a service but no answer.
        """
        services = [one for one in self._services if one.has_alias(alias)]
        if not services or not alias.endswith(self._suffix):
            return False
        answer = await self._ask(alias, services, self._client.knows_alias)
        if answer is Answer.SILENCE:
            raise MatrixError("The application service does not answer", errcode="M_UNKNOWN", status=408)
        return answer is Answer.MADE

    async def make_users(self, user_ids: Iterable[UserId]) -> None:
        """Let services make those of the users that are theirs and unknown; one that is not made stays unknown.

        Raises:
            DatabaseUnavailable
        """
        theirs: dict[UserId, Sequence[Registration]] = {}
        for user_id in user_ids:
            if user_id.endswith(self._suffix):
                services = [one for one in self._services if one.has_user(user_id) and user_id != one.sender]
                if services:
                    theirs[user_id] = services
        if not theirs:
            return
        async with self._accounts.reading() as tx:
            known = await profiles.list_profiles(tx, list(theirs))
        unknown = [user_id for user_id in theirs if user_id not in known][:MAX_USERS]
        await asyncio.gather(*(self._ask(one, theirs[one], self._client.knows_user) for one in unknown))

    async def _ask(self, name: str, services: Sequence[Registration], ask: _Ask) -> Answer:
        """Ask once for all who want to know, and not again for a while."""
        kept = self._answers.get(name)
        if kept is not None and kept[0] > self._clock.monotonic():
            return kept[1]
        if (asked := self._asking.get(name)) is not None:
            return await asyncio.shield(asked)
        if len(self._asking) >= MAX_ASKING:
            return Answer.SILENCE
        self._asking[name] = future = asyncio.get_running_loop().create_future()
        answer = Answer.SILENCE
        try:
            answer = await self._ask_all(name, services, ask)
        finally:
            del self._asking[name]
            future.set_result(answer)
        if answer is not Answer.MADE:
            self._answers[name] = (self._clock.monotonic() + KEPT_SECONDS, answer)
        return answer

    async def _ask_all(self, name: str, services: Sequence[Registration], ask: _Ask) -> Answer:
        answer = Answer.UNKNOWN
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                for service in services:
                    found = await self._ask_one(name, service, ask)
                    if found is Answer.MADE:
                        return found
                    if found is Answer.SILENCE:
                        answer = found
        except TimeoutError:
            return Answer.SILENCE
        return answer

    async def _ask_one(self, name: str, service: Registration, ask: _Ask) -> Answer:
        for attempt in range(TRIES):
            if attempt:
                await self._clock.sleep(PAUSE_SECONDS)
            try:
                return Answer.MADE if await ask(service, name) else Answer.UNKNOWN
            except AppServiceFailed as error:
                log.info("application service not asked", service_id=service.service_id, error=str(error))
                if error.status in (401, 403):  # it will not answer this server, however often it is asked
                    return Answer.UNKNOWN
        return Answer.SILENCE

"""From room.log into the queues of application services.

Spec: Application Service API §Pushing events, §Pushing ephemeral data.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from matrixcore.identifiers import RoomId, ServerName
from services.appservice.interest import NOBODY, Namespaces, RoomMembers, Services, load_aliased
from tessera.clock import Clock
from tessera.record_consumer import NOTHING_TO_APPLY, AfterCommit
from tessera.records import EventBody, LogRecord, Receipt, ReceiptsBody, StateBody, StateMembership
from tessera.storage import appservice_queue
from tessera.storage.appservice_queue import NewEphemeral, NewEvent
from tessera.storage.database import Database, Transaction
from tessera.storage.shards import RoomShards

CONSUMER = "appservice"


@dataclass(frozen=True, slots=True)
class _News:
    """What one record is to services, in the order of the log."""

    record: LogRecord
    events: tuple[NewEvent, ...]
    passing: tuple[NewEphemeral, ...]


class AppServiceStep:
    """Queues events and receipts for the services that they concern, each once.

    Args:
        wake: called when something was queued.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        accounts: Database,
        shards: RoomShards,
        clock: Clock,
        server_name: ServerName,
        wake: Callable[[], None],
    ) -> None:
        self._namespaces = namespaces
        self._members = RoomMembers(namespaces, server_name)
        self._hearing = frozenset(one.service_id for one in namespaces.services if one.receive_ephemeral)
        self._accounts = accounts
        self._shards = shards
        self._clock = clock
        self._server_name = server_name
        self._wake = wake

    def concerns(self, _record: LogRecord) -> bool:
        """Every record: where one is left out, the members of its room would have to be read again."""
        return True

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """Find out whom the records concern; most concern nobody, and cost the account store nothing then."""
        database = self._shards.of_partition(records[0].partition)
        await self._members.load(database, records)
        present: list[tuple[LogRecord, Services]] = []
        for record in records:
            if not self._members.knows(record):
                await self._members.load(database, [record])
            present.append((record, self._members.take(record)))
        self._members.trim()
        told = [record.room_id for record in records if isinstance(record.body, (EventBody, ReceiptsBody))]
        aliased = await load_aliased(self._accounts, self._namespaces, told)
        news = [self._news_of(record, services | aliased.get(record.room_id, NOBODY)) for record, services in present]
        return [one for one in news if one.events or one.passing] or NOTHING_TO_APPLY

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """Queue what was found; what another process has queued meanwhile is left out."""
        news = cast("list[_News]", prepared)
        done = await appservice_queue.lock_cursor(tx, CONSUMER, records[0].partition)
        new = [one for one in news if (one.record.incarnation, one.record.position) > done]
        await appservice_queue.add_events(tx, [event for one in new for event in one.events])
        await appservice_queue.add_ephemeral(tx, [passing for one in new for passing in one.passing])

        async def wake() -> None:
            self._wake()

        return wake

    def _news_of(self, record: LogRecord, present: Services) -> _News:
        services = present | self._namespaces.of_room(record.room_id)
        match record.body:
            case EventBody():
                return _News(record, tuple(self._event_news(record, services)), ())
            case StateBody(memberships=memberships):
                return _News(record, tuple(self._state_news(record.room_id, memberships, services)), ())
            case ReceiptsBody(receipts=receipts):
                return _News(record, (), tuple(self._receipt_news(record.room_id, receipts, services)))
            case _:
                return _News(record, (), ())

    def _event_news(self, record: LogRecord, services: Services) -> Iterator[NewEvent]:
        event = record.event
        target = NOBODY if event.membership is None else self._namespaces.of_user(event.state_key)
        for service_id in sorted(services | target | self._namespaces.of_user(event.sender)):
            aside = None
            if event.stripped_state is not None and service_id in target:
                aside = orjson.dumps({"stripped": orjson.Fragment(event.stripped_state)})
            yield NewEvent(service_id, record.room_id, event.event_id, aside)

    def _state_news(
        self, room_id: RoomId, memberships: Sequence[StateMembership], services: Services
    ) -> Iterator[NewEvent]:
        """Memberships without an event in the timeline: of rooms of other servers, or what a resolution changed."""
        for one in memberships:
            aside = self._membership_aside(one)
            for service_id in sorted(services | self._namespaces.of_user(one.user_id)):
                yield NewEvent(service_id, room_id, one.event_id, aside)

    def _membership_aside(self, one: StateMembership) -> bytes:
        """What is told where the shard does not have the event, or has one that no longer counts."""
        stripped: list[dict[str, Any]] = [] if one.stripped_state is None else orjson.loads(one.stripped_state)
        content: dict[str, Any] = {"membership": one.membership}
        for event in stripped:
            if event.get("type") == "m.room.member" and event.get("state_key") == one.user_id:
                content = {**event["content"], "membership": one.membership}
        member = {
            "type": "m.room.member",
            "state_key": one.user_id,
            "sender": one.sender,
            "content": content,
            "event_id": one.event_id,
            "origin_server_ts": self._clock.now_ms(),
        }
        return orjson.dumps({"member": member, "stripped": stripped} if stripped else {"member": member})

    def _receipt_news(self, room_id: RoomId, receipts: Sequence[Receipt], services: Services) -> Iterator[NewEphemeral]:
        for service_id in sorted(services & self._hearing):
            for receipt in receipts:
                yield appservice_queue.receipt_news(service_id, room_id, receipt)

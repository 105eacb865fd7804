"""From room.log into the queues of pushers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.push_evaluation import PushOutcome
from services.push import evaluating
from services.push.evaluating import Asked, Subject
from tessera.clock import Clock
from tessera.record_consumer import NOTHING_TO_APPLY, AfterCommit
from tessera.records import EventBody, LogRecord
from tessera.storage import push_queue
from tessera.storage.database import Database, Transaction
from tessera.storage.push_details import list_room_mentions
from tessera.storage.push_queue import Notice
from tessera.storage.room_reads.many_rooms import list_member_pdus
from tessera.storage.shards import RoomShards

CONSUMER = "push"


@dataclass(frozen=True, slots=True)
class PushStep:
    """Judges events for the local users who have pushers. Spec: C-S API §Push Rules.

    Attributes:
        wake: called when something was queued.
        mail_delay_seconds: before a mail; None where the operator sends none.
    """

    accounts: Database
    shards: RoomShards
    clock: Clock
    server_name: ServerName
    jitter_seconds: float
    wake: Callable[[], None]
    mail_delay_seconds: float | None = None

    @property
    def _kinds(self) -> tuple[str, ...]:
        return push_queue.KINDS if self.mail_delay_seconds is None else (*push_queue.KINDS, "email")

    def concerns(self, record: LogRecord) -> bool:
        """Events, as long as they are not redacted."""
        return isinstance(record.body, EventBody) and not record.body.redacted

    async def prepare(self, records: Sequence[LogRecord]) -> object:
        """Judge the events; nobody holds a connection meanwhile."""
        return await self._list_notices(records) or NOTHING_TO_APPLY

    async def _list_notices(self, records: Sequence[LogRecord]) -> list[Notice]:
        oldest_ms = self.clock.now_ms() - int(push_queue.MAX_AGE_SECONDS * 1_000)
        subjects = [one for one in evaluating.subjects_of(records) if one.body.origin_server_ts > oldest_ms]
        asked = await self._list_asked(subjects)
        if not asked:
            return []
        room_mentions, members = await self._ask_rooms(asked)
        by_default: dict[EventId, PushOutcome] = {}
        notices: list[Notice] = []
        senders: dict[tuple[UserId, EventId], UserId] = {}
        for one in asked:
            body = one.subject.body
            member = members.get((body.event_id, one.member.user_id))
            if not evaluating.was_joined(one, member):
                continue
            mentions_room = body.event_id in room_mentions
            if body.event_id not in by_default:
                by_default[body.event_id] = evaluating.outcome_by_default(one.subject, mentions_room=mentions_room)
            outcome = evaluating.judge(
                one,
                evaluating.display_name_of(member),
                mentions_room=mentions_room,
                by_default=by_default[body.event_id],
            )
            if outcome.notify:
                notices.append(evaluating.notice_of(one, outcome))
                senders[one.member.user_id, body.event_id] = body.sender
        return await self._without_ignored(notices, senders)

    async def apply(self, tx: Transaction, records: Sequence[LogRecord], prepared: object) -> AfterCommit | None:
        """Queue what was found; with the cursor, so that nothing is queued twice."""
        notices = cast("list[Notice]", prepared)
        await push_queue.add_notices(
            tx,
            notices,
            jitter_seconds=self.jitter_seconds,
            mail_delay_seconds=self.mail_delay_seconds or 0.0,
            kinds=self._kinds,
        )

        async def wake() -> None:
            self.wake()

        return wake

    async def _list_asked(self, subjects: Sequence[Subject]) -> list[Asked]:
        """Whom each event is to be judged for: of what notifies nobody by default, users with rules of their own."""
        loud: list[Subject] = []
        quiet: list[Subject] = []
        for one in subjects:
            (loud if evaluating.may_notify_by_default(one) else quiet).append(one)
        invitees = {user for one in loud if (user := evaluating.invitee_of(one, self.server_name)) is not None}
        rooms = list(dict.fromkeys(one.record.room_id for one in loud))
        kinds = self._kinds
        quiet_rooms = list(dict.fromkeys(one.record.room_id for one in quiet))
        async with self.accounts.reading() as tx:
            members = await push_queue.list_members_with_pushers(tx, rooms, kinds=kinds) if rooms else []
            ruled = await push_queue.list_members_with_pushers(tx, quiet_rooms, with_rules_only=True, kinds=kinds)
            invited = await push_queue.list_users_with_pushers(tx, sorted(invitees), kinds=kinds) if invitees else {}
        return [
            *evaluating.pair_up(loud, members, invited, self.server_name),
            *evaluating.pair_up(quiet, ruled, {}, self.server_name),
        ]

    async def _ask_rooms(self, asked: Sequence[Asked]) -> tuple[set[EventId], dict[tuple[EventId, UserId], bytes]]:
        """What only the shard knows: who may mention the room, and who was what in it when."""
        mentioning: dict[EventId, RoomId] = {}
        unsure: dict[EventId, tuple[Subject, list[UserId]]] = {}
        for subject, member in asked:
            if subject.mentions_room:
                mentioning[subject.body.event_id] = subject.record.room_id
            if member.own_rules is not None or member.position > subject.record.position:
                unsure.setdefault(subject.body.event_id, (subject, []))[1].append(member.user_id)
        if not mentioning and not unsure:
            return set(), {}
        async with self.shards.of_partition(asked[0].subject.record.partition).reading() as tx:
            mentions = set()
            if mentioning:
                mentions = await list_room_mentions(tx, [(room, event_id) for event_id, room in mentioning.items()])
            pdus = await list_member_pdus(tx, [(subject.place, users) for subject, users in unsure.values()])
        found = {
            (event_id, user_id): pdu
            for event_id, by_user in zip(unsure, pdus, strict=True)
            for user_id, pdu in by_user.items()
        }
        return mentions, found

    async def _without_ignored(
        self, notices: list[Notice], senders: dict[tuple[UserId, EventId], UserId]
    ) -> list[Notice]:
        if not notices:
            return []
        async with self.accounts.reading() as tx:
            lists = await push_queue.list_ignored_lists(tx, list(dict.fromkeys(one.user_id for one in notices)))
        return [
            one for one in notices if not evaluating.ignores(lists.get(one.user_id), senders[one.user_id, one.event_id])
        ]

"""Which events have notified a user, newest first, found by judging them again.

The events of each partition are one stream in the order of its positions; the streams are merged by the time at which
the events came. A page ends in a position for each partition, so that the next one begins there exactly. A request
looks at a bounded number of events: where few of them notify, its page is short and has a token all the same.

Spec: C-S API §Listing Notifications; DESIGN.md section 5.
"""

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from matrixcore.identifiers import RoomId, UserId
from matrixcore.push_evaluation import PushEvaluator, PushOutcome
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.visibility import Membership
from services.gateway.room_access import RoomView
from tessera.room_visibility import MembershipHistory
from tessera.storage.database import Database
from tessera.storage.notifications import Candidate, Looked, Range, look_at_rooms
from tessera.storage.room_reads.many_rooms import list_rooms_with_steps
from tessera.storage.room_reads.members import list_member_contents
from tessera.storage.shards import RoomShards
from tessera.unread import push_room

LOOKED_AT = 4_000  # events in one round, by and large
MIN_WINDOW = 5  # of one room
MAX_ROUNDS = 5


class Notified(NamedTuple):
    """An event that notified the user."""

    room_id: RoomId
    candidate: Candidate
    outcome: PushOutcome


@dataclass(frozen=True, slots=True)
class NotifiedPage:
    """Notifications, newest first.

    Attributes:
        below: where the next page begins, by partition; None at the end.
    """

    notified: list[Notified]
    below: dict[int, int] | None


@dataclass(frozen=True, slots=True)
class Judge:
    """How a user's events are judged.

    Attributes:
        default_rules: `evaluator` has the default rules only.
        ignored: users whose events do not notify.
    """

    user_id: UserId
    evaluator: PushEvaluator
    default_rules: bool
    ignored: Collection[UserId] = ()
    highlights_only: bool = False

    def judge(self, room_id: RoomId, candidate: Candidate, display_name: str | None) -> PushOutcome | None:
        """The outcome for an event that is to be in the list."""
        event = candidate.event
        outcome = self.evaluator.evaluate(
            {**orjson.loads(event.pdu), "event_id": event.event_id, "room_id": room_id},
            push_room(candidate.joined_count, room_mention=candidate.room_mention),
            display_name,
        )
        return outcome if outcome.notify and (outcome.highlight or not self.highlights_only) else None


@dataclass(slots=True)
class RoomStay:
    """A room that the user is in: how it is seen, and since when."""

    view: RoomView
    since: int
    display_name: str | None = None

    def reaches(self, candidate: Candidate) -> bool:
        """Whether the user was in the room at the event, or was invited by it."""
        event, history = candidate.event, self.view.history
        return event.state_key == history.user_id or history.after(event.order) is Membership.JOIN


async def list_stays(
    shards: RoomShards, user_id: UserId, room_ids: Sequence[RoomId], *, with_names: bool
) -> dict[RoomId, RoomStay]:
    """The rooms that the user is joined or invited to, as far as they are known here; two statements a shard."""

    async def of_shard(name: str, rooms: list[RoomId]) -> dict[RoomId, RoomStay]:
        async with shards.databases[name].reading() as tx:
            found = await list_rooms_with_steps(tx, rooms, user_id)
            pdus = dict(await list_member_contents(tx, rooms, user_id)) if with_names else {}
        stays: dict[RoomId, RoomStay] = {}
        for room_id, (room, steps) in found.items():
            view = RoomView(room, ROOM_VERSIONS[room.room_version], MembershipHistory(user_id, steps))
            since = view.history.start_of_presence
            if since is not None:
                stays[room_id] = RoomStay(view, since.anchor, _display_name(pdus.get(room_id)))
        return stays

    groups = shards.group_rooms(room_ids)
    stays: dict[RoomId, RoomStay] = {}
    for found in await asyncio.gather(*(of_shard(name, rooms) for name, rooms in groups.items())):
        stays.update(found)
    return stays


async def find_notified(
    shards: RoomShards, stays: Mapping[RoomId, RoomStay], judge: Judge, below: Mapping[int, int], limit: int
) -> NotifiedPage:
    """One page; nobody may hold a connection while calling.

    Args:
        below: where the page begins, by partition; a partition that is not in it begins at its end.
    """
    bounds: dict[int, int] = {}
    for room_id, stay in stays.items():
        partition = shards.partition_of(room_id)
        bounds[partition] = max(bounds.get(partition, 0), stay.view.room.last_position + 1)
    bounds.update({partition: bound for partition, bound in below.items() if partition in bounds})
    notified: list[Notified] = []
    for _ in range(MAX_ROUNDS):
        streams = await _look(shards, stays, judge, bounds)
        for stream, found in _merged(streams):
            # Past the event in any case: it is judged once.
            bounds[stream.partition] = found[1].event.order.anchor
            room_id, candidate = found
            stay = stays[room_id]
            outcome = judge.judge(room_id, candidate, stay.display_name) if stay.reaches(candidate) else None
            if outcome is None:
                continue
            notified.append(Notified(room_id, candidate, outcome))
            if len(notified) == limit:
                return NotifiedPage(notified, bounds)
        drained = [stream for stream in streams if stream.is_drained]
        for stream in drained:
            bounds[stream.partition] = min(bounds[stream.partition], stream.looked_down_to)
        if all(stream.is_whole for stream in streams) and len(drained) == len(streams):
            return NotifiedPage(notified, None)
    return NotifiedPage(notified, bounds)


@dataclass(slots=True)
class _Stream:
    """What was looked at in one partition, newest first.

    Attributes:
        looked_down_to: above and at this position every event was looked at.
        is_whole: nothing is left below it.
    """

    partition: int
    found: list[tuple[RoomId, Candidate]]
    looked_down_to: int
    is_whole: bool
    taken: int = 0

    @property
    def is_drained(self) -> bool:
        return self.taken == len(self.found)


async def _look(
    shards: RoomShards, stays: Mapping[RoomId, RoomStay], judge: Judge, bounds: Mapping[int, int]
) -> list[_Stream]:
    """One round: the newest events of all rooms below the bounds; one statement a shard."""
    wanted: dict[str, list[Range]] = defaultdict(list)
    for room_id, stay in stays.items():
        partition = shards.partition_of(room_id)
        if bounds[partition] > stay.since:
            wanted[shards.shard_of(partition)].append(Range(room_id, stay.since, bounds[partition]))
    number = sum(len(ranges) for ranges in wanted.values())
    window = max(MIN_WINDOW, LOOKED_AT // max(1, number))

    async def of_shard(database: Database, ranges: list[Range]) -> list[Looked]:
        async with database.reading() as tx:
            return await look_at_rooms(
                tx,
                ranges,
                judge.user_id,
                window=window,
                silent=[judge.user_id, *judge.ignored],
                default_rules=judge.default_rules,
            )

    in_shards = await asyncio.gather(*(of_shard(shards.databases[name], own) for name, own in wanted.items()))
    by_partition: dict[int, list[Looked]] = defaultdict(list)
    for looked in in_shards:
        for one in looked:
            by_partition[shards.partition_of(one.room_id)].append(one)
    return [_stream_of(partition, looked) for partition, looked in by_partition.items()]


def _stream_of(partition: int, looked: Sequence[Looked]) -> _Stream:
    """Rooms of a partition share its positions; below the oldest event of a room that goes on nothing is sure."""
    cuts = [one.oldest for one in looked if not one.is_whole and one.oldest is not None]
    cut = max(cuts, default=0)
    found = [(one.room_id, candidate) for one in looked for candidate in one.candidates]
    sure = [one for one in found if one[1].event.order.anchor >= cut]
    sure.sort(key=lambda one: one[1].event.order, reverse=True)
    return _Stream(partition, sure, cut, is_whole=not cuts)


def _merged(streams: Sequence[_Stream]) -> Iterator[tuple[_Stream, tuple[RoomId, Candidate]]]:
    """The streams' events, newest first, until one of them ends that goes on below."""
    heap: list[tuple[int, int]] = []
    for index, stream in enumerate(streams):
        if stream.is_drained:
            if not stream.is_whole:
                return
            continue
        heapq.heappush(heap, (-stream.found[0][1].received_ms, index))
    while heap:
        _, index = heapq.heappop(heap)
        stream = streams[index]
        found = stream.found[stream.taken]
        stream.taken += 1
        yield stream, found
        if not stream.is_drained:
            heapq.heappush(heap, (-stream.found[stream.taken][1].received_ms, index))
        elif not stream.is_whole:
            return


def _display_name(pdu: bytes | None) -> str | None:
    name = None if pdu is None else orjson.loads(pdu)["content"].get("displayname")
    return name if isinstance(name, str) else None

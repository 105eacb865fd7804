"""The results of a search: hits of all shards in one order, as far as the user may see them.

Spec: C-S API §Server Side Search, §Room History Visibility.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from matrixcore.identifiers import RoomId, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.visibility import Membership, Sight
from services.gateway.room_access import RoomView
from services.gateway.search_request import PageStart, SearchRequest
from tessera.erased_events import is_unheard
from tessera.room_visibility import MembershipHistory, sight_of
from tessera.storage import user_rooms
from tessera.storage.database import Database
from tessera.storage.erased_users import list_erased
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.many_rooms import list_events_of_rooms, list_rooms_with_steps
from tessera.storage.search import Hit, Hits, Hunt, find_best, find_recent
from tessera.storage.shards import RoomShards

MAX_ROUNDS = 5  # pages of hits looked at for one page of results
SEEN_MEMBERSHIPS = ("join", "leave", "ban")


class Result(NamedTuple):
    """An event found that the user may see."""

    hit: Hit
    view: RoomView
    event: EventRow


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results in order, about how many there are, and the hit after which the next page begins, None at the end."""

    results: list[Result]
    count: int
    last: Hit | None


async def list_searched_rooms(accounts: Database, user_id: UserId, request: SearchRequest) -> list[RoomId]:
    """The rooms that the user is or was in and wants to have searched."""
    async with accounts.reading() as tx:
        rooms = await user_rooms.list_rooms(tx, user_id, SEEN_MEMBERSHIPS)
    wanted = [room.room_id for room in rooms if request.filter.allows_room(room.room_id)]
    start = request.start
    if start is not None and start.group == "room_id":
        wanted = [room_id for room_id in wanted if room_id == start.group_value]
    return wanted


async def find_results(
    shards: RoomShards, accounts: Database, user_id: UserId, request: SearchRequest, ignored: Sequence[UserId]
) -> ResultPage:
    """One page of results; nobody may hold a connection while calling."""
    if not request.query or not request.kinds:
        return ResultPage([], 0, None)
    groups = shards.group_rooms(await list_searched_rooms(accounts, user_id, request))
    found: list[Result] = []
    start, count = request.start, 0
    for number in range(MAX_ROUNDS):
        in_shards = await asyncio.gather(
            *(_hunt(shards.databases[shard], _hunt_of(request, rooms, ignored, start), request)
              for shard, rooms in groups.items())
        )  # fmt: skip
        if number == 0:
            count = sum(hits.total for hits in in_shards) if start is None else start.total
        hits = _merged(in_shards, request.by_rank, start)
        page = hits[: request.limit]
        visible = await _list_visible(shards, accounts, user_id, page, request)
        for hit in page:
            if (result := visible.get(hit)) is not None:
                found.append(result)
            if len(found) == request.limit:
                is_last = hit == hits[-1]
                return ResultPage(found, count, None if is_last else hit)
        if len(hits) <= request.limit:
            return ResultPage(found, count, None)
        start = PageStart(page[-1].rank, page[-1].ts, page[-1].event_id, count)
    return ResultPage(found, count, page[-1])


def _hunt_of(
    request: SearchRequest, rooms: Sequence[RoomId], ignored: Sequence[UserId], start: PageStart | None
) -> Hunt:
    wanted = request.filter
    senders = None if wanted.senders is None else sorted(wanted.senders)
    group = request.start
    if group is not None and group.group == "sender" and group.group_value is not None:
        senders = [group.group_value] if senders is None or group.group_value in senders else []
    return Hunt(
        query=request.query,
        rooms=rooms,
        kinds=request.kinds,
        senders=senders,
        not_senders=sorted(wanted.not_senders.union(ignored)),
        related_by_senders=None if wanted.related_by_senders is None else sorted(wanted.related_by_senders),
        related_by_rel_types=None if wanted.related_by_rel_types is None else sorted(wanted.related_by_rel_types),
        below=None if start is None or request.by_rank else (start.ts, start.event_id),
    )


async def _hunt(database: Database, hunt: Hunt, request: SearchRequest) -> Hits:
    async with database.snapshot() as tx:
        # One more than a page tells whether there are more.
        return await (find_best(tx, hunt) if request.by_rank else find_recent(tx, hunt, request.limit + 1))


def _merged(in_shards: Sequence[Hits], by_rank: bool, start: PageStart | None) -> list[Hit]:
    hits = [hit for found in in_shards for hit in found.hits]
    if by_rank:
        if start is not None:
            hits = [hit for hit in hits if hit[:3] < start[:3]]
        return sorted(hits, reverse=True)
    return sorted(hits, key=lambda hit: hit[1:], reverse=True)


async def _list_visible(
    shards: RoomShards, accounts: Database, user_id: UserId, hits: Sequence[Hit], request: SearchRequest
) -> dict[Hit, Result]:
    """Those of the hits that the user may see as they are: neither redacted nor erased for this user."""
    by_shard: dict[str, list[Hit]] = {}
    for hit in hits:
        by_shard.setdefault(shards.shard_of(shards.partition_of(hit.room_id)), []).append(hit)
    loaded = await asyncio.gather(*(_load(shards.databases[name], user_id, own) for name, own in by_shard.items()))
    results = {result.hit: result for found in loaded for result in found if _is_shown(result, request)}
    unheard = {result.event.sender for result in results.values() if is_unheard(result.event, result.view.history)}
    if unheard:
        async with accounts.reading() as tx:
            erased = set(await list_erased(tx, list(unheard)))
        results = {
            hit: result
            for hit, result in results.items()
            if result.event.sender not in erased or not is_unheard(result.event, result.view.history)
        }
    return results


async def _load(database: Database, user_id: UserId, hits: Sequence[Hit]) -> list[Result]:
    room_ids = list(dict.fromkeys(hit.room_id for hit in hits))
    async with database.reading() as tx:
        rooms = await list_rooms_with_steps(tx, room_ids, user_id)
        events = await list_events_of_rooms(tx, [(hit.room_id, hit.event_id) for hit in hits])
    views: Mapping[RoomId, RoomView] = {
        room_id: _view(RoomView(room, ROOM_VERSIONS[room.room_version], MembershipHistory(user_id, steps)))
        for room_id, (room, steps) in rooms.items()
    }
    return [
        Result(hit, views[hit.room_id], event)
        for hit in hits
        if hit.room_id in views and (event := events.get((hit.room_id, hit.event_id))) is not None
    ]


def _view(view: RoomView) -> RoomView:
    """The room up to the end of the user's stay, if that has ended."""
    if view.history.current is Membership.JOIN:
        return view
    return RoomView(view.room, view.rules, view.history, view.history.end_of_stay)


def _is_shown(result: Result, request: SearchRequest) -> bool:
    event, view = result.event, result.view
    if event.redacted_by is not None or event.anchor is None or not view.history.ever_joined:
        return False
    if view.until is not None and event.order > view.until:
        return False
    if sight_of(event, view.history) is Sight.HIDDEN:
        return False
    wanted = request.filter.contains_url
    return wanted is None or wanted is ("url" in orjson.loads(event.pdu)["content"])

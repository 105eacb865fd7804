"""What goes with each result of a search: events around it, what relates to them, and who spoke.

Spec: C-S API §Server Side Search, event_context; §Aggregations of child events.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from matrixcore.identifiers import EventId, RoomId, UserId
from services.gateway.search_request import SearchRequest, WantedContext
from services.gateway.search_results import Result
from tessera.erased_events import hide_erased, unheard_senders
from tessera.pagination_token import point_before
from tessera.records import OrderKey
from tessera.room_visibility import drop_unseen, list_visible
from tessera.storage.database import Database
from tessera.storage.erased_users import list_erased
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.many_rooms import Place, list_member_pdus, list_neighbours
from tessera.storage.room_reads.relations import Bundle, list_room_bundles
from tessera.storage.shards import RoomShards

NO_CONTEXT = WantedContext(0, 0, False)


@dataclass(slots=True)
class Surrounding:
    """What is shown with one result.

    Attributes:
        before: newest first, as in /context; `after` oldest first.
        start, end: page tokens of the chunk's ends.
        profiles: of the senders as they were then; None if nobody asked.
    """

    before: list[EventRow]
    after: list[EventRow]
    start: OrderKey
    end: OrderKey
    bundles: Mapping[EventId, Bundle] = field(default_factory=dict)
    profiles: dict[UserId, dict[str, str]] | None = None


async def list_surroundings(
    shards: RoomShards,
    accounts: Database,
    results: Sequence[Result],
    request: SearchRequest,
    ignored: Sequence[UserId],
) -> list[Surrounding]:
    """One for each result, in their order; at most four statements a shard."""
    by_shard: dict[str, list[int]] = {}
    for number, result in enumerate(results):
        by_shard.setdefault(shards.shard_of(shards.partition_of(result.hit.room_id)), []).append(number)
    context = request.context or NO_CONTEXT
    found = await asyncio.gather(
        *(
            _load(shards.databases[name], [results[number] for number in own], context, frozenset(ignored))
            for name, own in by_shard.items()
        )
    )
    surroundings: dict[int, Surrounding] = {}
    for own, loaded in zip(by_shard.values(), found, strict=True):
        surroundings.update(zip(own, loaded, strict=True))
    in_order = [surroundings[number] for number in range(len(results))]
    await _hide_erased(accounts, results, in_order)
    return in_order


async def _load(
    database: Database, results: Sequence[Result], context: WantedContext, ignored: frozenset[UserId]
) -> list[Surrounding]:
    places = [Place(result.hit.room_id, result.event.order) for result in results]
    async with database.reading() as tx:
        before = await list_neighbours(tx, places, backwards=True, limit=context.before)
        after = await list_neighbours(tx, places, backwards=False, limit=context.after)
        surroundings = [
            _surrounding(result, _shown(result, own_before, ignored), _shown(result, own_after, ignored))
            for result, own_before, own_after in zip(results, before, after, strict=True)
        ]
        bundles = await list_room_bundles(tx, _ids_by_room(results, surroundings), _reader_of(results), ignored)
        pdus: Sequence[Mapping[UserId, bytes]] = ()
        if context.profiles:
            pdus = await list_member_pdus(
                tx,
                [
                    (Place(result.hit.room_id, one.end), list(_senders(result, one)))
                    for result, one in zip(results, surroundings, strict=True)
                ],
            )
    for number, (result, one) in enumerate(zip(results, surroundings, strict=True)):
        one.bundles = bundles.get(result.hit.room_id, {})
        drop_unseen(one.bundles, result.view.history)
        if context.profiles:
            one.profiles = {user_id: _profile(pdu) for user_id, pdu in pdus[number].items()}
    return surroundings


def _reader_of(results: Sequence[Result]) -> UserId:
    return results[0].view.history.user_id


def _shown(result: Result, rows: Sequence[EventRow], ignored: frozenset[UserId]) -> list[EventRow]:
    until = result.view.until
    return [
        row
        for row in list_visible(rows, result.view.history)
        if (row.state_key is not None or row.sender not in ignored) and (until is None or row.order <= until)
    ]


def _surrounding(result: Result, before: list[EventRow], after: list[EventRow]) -> Surrounding:
    start = point_before((before[-1] if before else result.event).order)
    end = (after[-1] if after else result.event).order
    return Surrounding(before, after, start, end)


def _senders(result: Result, around: Surrounding) -> dict[UserId, None]:
    return dict.fromkeys(row.sender for row in (*around.before, result.event, *around.after))


def _ids_by_room(
    results: Sequence[Result], surroundings: Sequence[Surrounding]
) -> dict[RoomId, tuple[int, list[EventId]]]:
    wanted: dict[RoomId, tuple[int, dict[EventId, None]]] = {}
    for result, around in zip(results, surroundings, strict=True):
        _, ids = wanted.setdefault(result.hit.room_id, (result.view.head.anchor, {}))
        for row in (*around.before, result.event, *around.after):
            if row.state_key is None:
                ids[row.event_id] = None
    return {room_id: (up_to, list(ids)) for room_id, (up_to, ids) in wanted.items()}


async def _hide_erased(accounts: Database, results: Sequence[Result], surroundings: Sequence[Surrounding]) -> None:
    """Redact around the results what erased users said, for who was not joined then."""
    unheard: set[UserId] = set()
    for result, one in zip(results, surroundings, strict=True):
        unheard |= unheard_senders((*one.before, result.event, *one.after), one.bundles, result.view.history)
    if not unheard:
        return
    async with accounts.reading() as tx:
        erased = set(await list_erased(tx, list(unheard)))
    if not erased:
        return
    for result, one in zip(results, surroundings, strict=True):
        rows = [*one.before, *one.after]
        shown, one.bundles = hide_erased(
            result.hit.room_id, result.view.rules, rows, one.bundles, result.view.history, erased
        )
        one.before, one.after = shown[: len(one.before)], shown[len(one.before) :]


def _profile(pdu: bytes) -> dict[str, Any]:
    content = orjson.loads(pdu)["content"]
    return {key: value for key in ("displayname", "avatar_url") if isinstance(value := content.get(key), str)}

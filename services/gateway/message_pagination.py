"""GET /messages: pages of a room's history, a plain route as clients ask for many.

Spec: C-S API §Getting events for a room.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import RoomId, UserId
from matrixcore.visibility import Membership
from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.event_pages import (
    BEGINNING,
    Page,
    PageFilter,
    list_ignored,
    list_member_state,
    page_reply,
    parse_page_filter,
    read_page,
    serve_page,
)
from services.gateway.path_identifiers import point_of, room_id_of
from services.gateway.room_access import RoomView, require_view, view_of
from services.gateway.routing import client_routes, requester_of
from tessera.event_serving import serve_events
from tessera.http.authentication import Requester
from tessera.http.errors import InvalidParam, MissingParam
from tessera.http.replies import json_reply
from tessera.pagination_token import point_before
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import LOWEST, EventRow
from tessera.storage.room_reads.member_pages import MemberPage, find_member_page

DEFAULT_LIMIT = 10
MAX_LIMIT = 1_000
_LIMIT = re.compile("[0-9]{1,100}")


async def get_room_events(request: Request) -> Response:
    """A page of the room's events, and of what of its members is needed to show it."""
    requester = await requester_of(request)
    gateway = gateway_of(request)
    query = request.query_params
    room_id = room_id_of(request.path_params["room_id"])
    backwards = _parse_direction(query.get("dir"))
    limit = _parse_limit(query.get("limit"))
    ignored = await list_ignored(gateway.accounts, requester.user_id)
    page_filter = parse_page_filter(query.get("filter"), ignored)
    limit = min(max(1, limit), MAX_LIMIT, page_filter.filter.limit_or(MAX_LIMIT) or 1)
    reply = await list_messages(
        gateway, requester, room_id, backwards, query.get("from"), query.get("to"), limit, page_filter, ignored
    )
    return json_reply(reply)


routes = client_routes("/rooms/{room_id}/messages", get_room_events, methods=["GET"])


async def list_messages(
    gateway: GatewayDeps,
    requester: Requester,
    room_id: RoomId,
    backwards: bool,
    start: str | None,
    stop: str | None,
    limit: int,
    page_filter: PageFilter,
    ignored: Collection[UserId] = (),
) -> dict[str, Any]:
    """The answer of /messages.

    Args:
        start, stop: page or sync tokens; without `start` the page begins at the end that the direction comes from.
        ignored: users of whom nothing is aggregated; `page_filter` leaves their events out.
    """
    now_ms = gateway.clock.now_ms()
    partition = gateway.shards.partition_of(room_id)
    begin = point_of(start, "from", partition) or (None if backwards else BEGINNING)
    end = point_of(stop, "to", partition)
    after, up_to = (end, begin) if backwards else (begin, end)
    asked = _Asked(page_filter, after, up_to, backwards, limit)
    read = await _read_for(gateway, room_id, requester.user_id, asked)
    if await _extend(gateway, read, asked):
        read = await _read_for(gateway, room_id, requester.user_id, asked)
    page = await _cut_at_gap(gateway, read, asked)
    view, _, members, bundled = read
    chunk = await serve_page(
        gateway.shards,
        gateway.accounts,
        view,
        page.events,
        requester.device_id,
        now_ms,
        bundled=bundled,
        ignored=ignored,
    )
    state = None
    if page_filter.filter.lazy_load_members:
        state = serve_events(members, view.rules, view.reader(requester.device_id, now_ms), room_id=room_id)
    following = page.end
    if not backwards and following is None and page.events:
        # The live end: what comes later can be asked for from here.
        following = page.events[-1].order
    return page_reply(begin or view.head, following, chunk, state)


@dataclass(frozen=True, slots=True)
class _Asked:
    page_filter: PageFilter
    after: OrderKey | None
    up_to: OrderKey | None
    backwards: bool
    limit: int


class _Read(NamedTuple):
    view: RoomView
    page: Page
    members: list[EventRow]
    bundled: bool


async def _read_for(gateway: GatewayDeps, room_id: RoomId, user_id: UserId, asked: _Asked) -> _Read:
    read = await _read_as_member(gateway, room_id, user_id, asked)
    if read is not None:
        return read
    view = await require_view(gateway.shards, gateway.accounts, room_id, user_id)
    async with gateway.shards.of_room(room_id).reading() as tx:
        return await _read(tx, view, asked)


async def _extend(gateway: GatewayDeps, read: _Read, asked: _Asked) -> bool:
    """Fetch more history from other servers where the page comes to the end of what is here; whether there is more."""
    if not asked.backwards or gateway.backfiller is None or read.view.history.current is not Membership.JOIN:
        return False
    return await gateway.backfiller.extend(read.view.room.room_id, *_stretch_of(read, asked))


async def _cut_at_gap(gateway: GatewayDeps, read: _Read, asked: _Asked) -> Page:
    """The page, but nothing of what lies below a gap that another request may fill."""
    page = read.page
    if not asked.backwards or gateway.backfiller is None or read.view.history.current is not Membership.JOIN:
        return page
    gap = await gateway.backfiller.find_gap(read.view.room.room_id, *_stretch_of(read, asked))
    if gap is None or (page.end is not None and gap <= page.end):  # the next page begins with it
        return page
    return Page([event for event in page.events if event.order >= gap], point_before(gap))


def _stretch_of(read: _Read, asked: _Asked) -> tuple[OrderKey, OrderKey]:
    """The part of the room's order that a page going backwards is about."""
    top = asked.up_to
    # The event just above, whose prev_batch this is, may be the one where the history breaks off.
    high = read.view.head if top is None else OrderKey(top.anchor, top.sub + 1)
    return max(read.page.end or LOWEST, asked.after or LOWEST), high


async def _read_as_member(gateway: GatewayDeps, room_id: RoomId, user_id: UserId, asked: _Asked) -> _Read | None:
    """The page if the user is joined and the filter simple, which is nearly always: the room and the page at once."""
    if not asked.page_filter.conditions.is_empty:
        return None
    async with gateway.shards.of_room(room_id).reading() as tx:
        found = await find_member_page(
            tx,
            room_id,
            user_id,
            after=asked.after,
            up_to=asked.up_to,
            backwards=asked.backwards,
            limit=asked.limit,
        )
        if found is None:
            return None
        view = view_of(found.room, found.steps, user_id)
        if view.history.current is not Membership.JOIN:
            return None
        return await _read(tx, view, asked, found)


async def _read(tx: Transaction, view: RoomView, asked: _Asked, found: MemberPage | None = None) -> _Read:
    """A page, with the member events that it lacks if these are loaded lazily."""
    page = await read_page(
        tx,
        view,
        after=asked.after,
        up_to=asked.up_to or (view.head if asked.backwards else None),
        backwards=asked.backwards,
        limit=asked.limit,
        page_filter=asked.page_filter,
        first=None if found is None else found.events,
    )
    members = []
    if asked.page_filter.filter.lazy_load_members:
        members = await list_member_state(tx, view, page.events)
    return _Read(view, page, members, found is None or found.has_relations or _goes_beyond(page, found))


def _goes_beyond(page: Page, found: MemberPage) -> bool:
    """Whether events of later rounds are in the page: nobody has looked for their relations."""
    if not page.events:
        return False
    last = page.events[-1].event_id
    return all(event.event_id != last for event in found.events)


def _parse_direction(text: str | None) -> bool:
    if text is None:
        raise MissingParam("dir is missing")
    if text not in ("b", "f"):
        raise InvalidParam("dir must be b or f")
    return text == "b"


def _parse_limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if _LIMIT.fullmatch(text) is None:
        raise InvalidParam("limit must be an integer that is not negative")
    return int(text)

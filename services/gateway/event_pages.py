"""Pages of a room's events as one user sees them: the work behind /messages, /context and their like.

Spec: C-S API §Pagination, §Lazy-loading room members, §Room History Visibility.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from matrixcore.filters import InvalidFilter, RoomEventFilter, parse_room_event_filter
from matrixcore.identifiers import EventId, UserId
from services.gateway.room_access import RoomView
from tessera.erased_events import hide_erased, unheard_senders
from tessera.event_serving import serve_events
from tessera.http.errors import InvalidParam
from tessera.pagination_token import encode_page_token, point_before
from tessera.records import OrderKey
from tessera.room_visibility import drop_unseen, list_visible
from tessera.storage import account_data
from tessera.storage.database import Database, Transaction
from tessera.storage.erased_users import list_erased
from tessera.storage.room_reads.events import EventConditions, EventRow, find_scan_end, list_page
from tessera.storage.room_reads.relations import Bundle, list_bundles
from tessera.storage.room_reads.state import list_state_keys
from tessera.storage.shards import RoomShards

MAX_ROUNDS = 5  # pages looked at for one answer, where the reader may not see all of them
BEGINNING = OrderKey(0)


@dataclass(frozen=True, slots=True)
class PageFilter:
    """A RoomEventFilter, and what of it the database can judge."""

    filter: RoomEventFilter = field(default_factory=RoomEventFilter)
    conditions: EventConditions = field(default_factory=EventConditions)

    def kept(self, events: list[EventRow], room_id: str) -> list[EventRow]:
        """Those that pass what the database has not judged."""
        if not self.filter.allows_room(room_id):
            return []
        wanted = self.filter.contains_url
        if wanted is None:
            return events
        return [event for event in events if wanted is ("url" in orjson.loads(event.pdu)["content"])]


NO_FILTER = PageFilter()


@dataclass(frozen=True, slots=True)
class Page:
    """Events in the order of the request, and the point after them in its direction; None where there is no more."""

    events: list[EventRow]
    end: OrderKey | None


def parse_page_filter(text: str | None, ignored: Sequence[UserId] = ()) -> PageFilter:
    """The `filter` parameter, JSON as text.

    Args:
        ignored: users whose events, other than state, are left out.

    Raises:
        InvalidParam
    """
    body: Any = {}
    if text is not None:
        try:
            body = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise InvalidParam("filter must be JSON") from error
    try:
        parsed = parse_room_event_filter(body)
    except InvalidFilter as error:
        raise InvalidParam(f"filter: {error}") from error
    return PageFilter(
        parsed,
        EventConditions(
            types=body.get("types"),
            not_types=body.get("not_types") or None,
            senders=body.get("senders"),
            not_senders=body.get("not_senders") or None,
            ignored_senders=list(ignored) or None,
            related_by_senders=body.get("related_by_senders"),
            related_by_rel_types=body.get("related_by_rel_types"),
        ),
    )


async def list_ignored(accounts: Database, user_id: UserId) -> list[UserId]:
    """The users whom the user ignores. Spec: §Ignoring Users."""
    async with accounts.reading() as tx:
        content = await account_data.find_content(tx, user_id, account_data.GLOBAL, "m.ignored_user_list")
    users = orjson.loads(content).get("ignored_users") if content is not None else None
    return list(users) if isinstance(users, Mapping) else []


async def read_page(
    tx: Transaction,
    view: RoomView,
    *,
    after: OrderKey | None,
    up_to: OrderKey | None,
    backwards: bool,
    limit: int,
    page_filter: PageFilter = NO_FILTER,
    first: list[EventRow] | None = None,
) -> Page:
    """The first `limit` events with after < key <= up_to that the user may see and wants.

    The page may be shorter, even empty, and have more behind it: at most MAX_ROUNDS times `limit`
    events are looked at for it.

    Args:
        first: what `list_page` would answer to these arguments, where the caller has it.
    """
    room_id = view.room.room_id
    up_to = view.capped(up_to)
    found: list[EventRow] = []
    for _ in range(MAX_ROUNDS):
        wanted = limit - len(found)
        if first is not None:
            rows, first = first, None
        else:
            rows = await list_page(
                tx,
                room_id,
                after=after,
                up_to=up_to,
                backwards=backwards,
                limit=wanted,
                conditions=page_filter.conditions,
            )
        found += page_filter.kept(list_visible(rows, view.history), room_id)
        last = rows[-1].order if len(rows) == wanted else None
        if last is None and not page_filter.conditions.is_empty:
            last = await find_scan_end(tx, room_id, after=after, up_to=up_to, backwards=backwards)
        if last is None:
            return Page(found, None)
        if backwards:
            up_to = point_before(last)
        else:
            after = last
        if len(found) >= limit:
            break
    return Page(found, up_to if backwards else after)


async def serve_page(
    shards: RoomShards,
    accounts: Database,
    view: RoomView,
    events: Sequence[EventRow],
    device_id: str | None,
    now_ms: int,
    *,
    bundled: bool = True,
    ignored: Collection[UserId] = (),
) -> list[dict[str, Any]]:
    """Events as the client gets them, with their aggregated relations. The caller holds no connection meanwhile.

    Args:
        bundled: whether to look for relations; not needed where it is known that there are none.
        ignored: users of whom nothing is aggregated.
    """
    room_id = view.room.room_id
    bundles: dict[EventId, Bundle] = {}
    ids = [event.event_id for event in events if event.state_key is None]
    if bundled and ids:
        async with shards.of_room(room_id).reading() as tx:
            bundles = await list_bundles(tx, room_id, ids, view.history.user_id, up_to=view.until, ignored=ignored)
        drop_unseen(bundles, view.history)
    events, bundles = await _hide_erased(accounts, view, events, bundles)
    return serve_events(events, view.rules, view.reader(device_id, now_ms), room_id=room_id, bundles=bundles)


async def _hide_erased(
    accounts: Database, view: RoomView, events: Sequence[EventRow], bundles: dict[EventId, Bundle]
) -> tuple[Sequence[EventRow], dict[EventId, Bundle]]:
    """Redact what erased users said, for who was not joined then. A member who always was costs no query."""
    if view.history.joined_throughout(events):
        return events, bundles
    unheard = unheard_senders(events, bundles, view.history)
    if not unheard:
        return events, bundles
    async with accounts.reading() as tx:
        erased = set(await list_erased(tx, list(unheard)))
    if not erased:
        return events, bundles
    return hide_erased(view.room.room_id, view.rules, events, bundles, view.history, erased)


async def list_member_state(tx: Transaction, view: RoomView, events: Sequence[EventRow]) -> list[EventRow]:
    """The member events of the senders, as they were where the page begins: for lazy loading."""
    if not events:
        return []
    senders = dict.fromkeys(event.sender for event in events)
    keys = [("m.room.member", sender) for sender in senders]
    found = await list_state_keys(tx, view.room.room_id, keys, at=events[0].order)
    shown = {event.event_id for event in events}
    return [event for event in found.values() if event.event_id not in shown]


def page_reply(
    start: OrderKey, end: OrderKey | None, chunk: list[dict[str, Any]], state: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """The answer of /messages."""
    reply: dict[str, Any] = {"start": encode_page_token(start), "chunk": chunk}
    if end is not None:
        reply["end"] = encode_page_token(end)
    if state is not None:
        reply["state"] = state
    return reply

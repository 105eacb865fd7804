"""What is told beside rooms: account data, receipts and typing of the rooms that a request matches, and device news.

Each says nothing where nothing is new; which of them were told of a room is part of what the connection was sent.

Spec: MSC4186 §Extensions; MSC3884, MSC3885, MSC3959, MSC3960, MSC3961 for the deployed ones.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from matrixcore.identifiers import EventId, RoomId
from services.sync.ephemeral import TypingBoard
from services.sync.rendering import Json, account_data_event, push_rules_event, receipt_event, typing_event
from services.sync.sliding.request import RoomScope
from services.sync.sliding.sent_rooms import Told
from services.sync.sliding.windows import WantedRoom, Windows
from services.sync.user_states import UserState
from tessera.records import Receipt, ReceiptsBody
from tessera.storage import account_data, push_rules, read_positions, sync_accounts, sync_reads
from tessera.storage.account_data import AccountData
from tessera.storage.database import Database
from tessera.storage.shards import RoomShards
from tessera.storage.sync_reads import ReceiptRow
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.sync_token import Point

_PRIVATE = "m.read.private"


@dataclass(slots=True)
class RoomNews:
    """What extensions tell of rooms. `rooms`: those that were looked at, whether or not they have news."""

    found: Json = field(default_factory=dict)
    rooms: set[RoomId] = field(default_factory=set)


def in_scope(rooms: Mapping[RoomId, WantedRoom], scope: RoomScope) -> list[WantedRoom]:
    """The rooms of which an extension tells: those that the user is in."""
    return [wanted for wanted in rooms.values() if wanted.room.is_joined and wanted.is_in(scope)]


async def list_account_data(
    accounts: Database,
    state: UserState,
    told: Told,
    windows: Windows,
    scope: RoomScope,
    entries: Sequence[UserLogRow],
) -> tuple[Json, RoomNews]:
    """({global}, {room: events}) of what changed since `told`, and all of rooms that the client has nothing of."""
    news = RoomNews(rooms={wanted.room.room_id for wanted in in_scope(windows.active, scope)})
    is_initial = told.token is None
    whole = [room_id for room_id in news.rooms if (sent := told.rooms.get(room_id)) is None or not sent.has_data]
    keys = {
        (entry.room_id, entry.key)
        for entry in entries
        if entry.kind == UserLogKind.ACCOUNT_DATA
        or (entry.kind == UserLogKind.ROOM_ACCOUNT_DATA and entry.room_id in news.rooms)
    }
    tells_rules = is_initial or any(entry.kind == UserLogKind.PUSH_RULES for entry in entries)
    if not (is_initial or whole or keys or tells_rules):
        return {}, news
    stored_rules = None
    async with accounts.reading() as tx:
        if is_initial:
            rows = await account_data.list_all(tx, state.user_id)
        else:
            rows = await sync_accounts.list_account_data(tx, state.user_id, keys, whole) if keys or whole else []
        if tells_rules:
            stored_rules = await push_rules.find_rules(tx, state.user_id)
    events = [account_data_event(row) for row in rows if not row.room_id]
    if tells_rules:
        events.append(push_rules_event(state.user_id, stored_rules))
    for row in rows:
        if row.room_id in news.rooms and not _is_void(row, whole):
            news.found.setdefault(row.room_id, []).append(account_data_event(row))
    return {"global": events} if events else {}, news


def _is_void(row: AccountData, whole: Collection[RoomId]) -> bool:
    return row.content is None and row.room_id in whole


async def list_receipts(
    accounts: Database,
    shards: RoomShards,
    state: UserState,
    told: Told,
    windows: Windows,
    scope: RoomScope,
    entries: Sequence[UserLogRow],
    positions: Mapping[int, Point],
    timelines: Mapping[RoomId, Collection[EventId]],
) -> RoomNews:
    """m.receipt events of rooms: what arrived since `told`; for rooms that are new those that concern the timeline.

    Args:
        positions: up to where rooms are told.
        timelines: the events that the answer has of each room.
    """
    wanted = [one for one in in_scope(windows.active, scope) if one.room.room_id not in state.cuts]
    news = RoomNews(rooms={one.room.room_id for one in wanted})
    base = {} if told.token is None else told.token.positions
    receipts: dict[RoomId, list[Receipt | ReceiptRow]] = {}
    unread_floors: dict[RoomId, int] = {}
    own_anew: list[RoomId] = []
    for one in wanted:
        room, sent = one.room, told.rooms.get(one.room.room_id)
        assert room.tail is not None
        known = None if sent is None or not sent.has_receipts else sent.known or base.get(room.tail.partition)
        if known is None or sent is None or sent.known is not None:
            own_anew.append(room.room_id)
        floor = -1 if known is None else known.position
        if floor >= room.tail.last:
            continue
        if floor < room.tail.floor:
            unread_floors[room.room_id] = floor
            continue
        up_to = positions[room.tail.partition].position
        for record in room.tail.after(floor):
            if isinstance(record.body, ReceiptsBody) and record.position <= up_to:
                receipts.setdefault(room.room_id, []).extend(record.body.receipts)
    for shard, group in shards.group_rooms(unread_floors).items():
        async with shards.databases[shard].reading() as tx:
            rows = await sync_reads.list_receipts(tx, {room_id: unread_floors[room_id] for room_id in group})
        for room_id, found in rows.items():
            shown = timelines.get(room_id, ())
            is_new = unread_floors[room_id] < 0
            receipts[room_id] = [
                row for row in found if not is_new or row.user_id == state.user_id or row.event_id in shown
            ]
    for room_id, heard in receipts.items():
        if (event := receipt_event(heard, state.ignored)) is not None:
            news.found[room_id] = event
    await _add_private(accounts, state, news, own_anew, entries)
    return news


async def _add_private(
    accounts: Database, state: UserState, news: RoomNews, anew: Sequence[RoomId], entries: Iterable[UserLogRow]
) -> None:
    """The user's own private receipts: those that moved, and all of rooms that are told anew."""
    own: list[tuple[str, str, str, int]] = []  # room, event, thread, ts
    for entry in entries:
        if entry.kind == UserLogKind.RECEIPT and entry.key == _PRIVATE and entry.body and entry.room_id in news.rooms:
            body = orjson.loads(entry.body)
            own.append((entry.room_id, body["event_id"], body.get("thread_id", ""), body["ts"]))
    if anew:
        async with accounts.reading() as tx:
            positions = await read_positions.list_of_rooms(tx, state.user_id, anew)
        own += [(one.room_id, one.event_id, one.thread_id, one.ts) for one in positions if one.receipt_type == _PRIVATE]
    for room_id, event_id, thread_id, ts in own:
        data: Json = {"ts": ts, "thread_id": thread_id} if thread_id else {"ts": ts}
        event = news.found.setdefault(RoomId(room_id), {"type": "m.receipt", "content": {}})
        event["content"].setdefault(event_id, {}).setdefault(_PRIVATE, {})[state.user_id] = data


def list_typing(
    board: TypingBoard, instance: int, state: UserState, told: Told, windows: Windows, scope: RoomScope
) -> RoomNews:
    """m.typing events of rooms where the list of typists changed; of rooms that are new, where anybody types."""
    count = None if told.token is None or told.token.instance != instance else told.token.typing
    asked = windows.active if count == board.count else windows.rooms
    rooms = [one.room.room_id for one in in_scope(asked, scope) if one.room.room_id not in state.cuts]
    news = RoomNews(rooms=set(rooms))
    stayed = [room_id for room_id in rooms if (sent := told.rooms.get(room_id)) is not None and sent.known is None]
    fresh = news.rooms.difference(stayed)
    found = board.changed_since(count, stayed) if count != board.count else {}
    if fresh:
        found |= board.changed_since(None, fresh)
    for room_id, users in found.items():
        news.found[room_id] = typing_event(user_id for user_id in users if user_id not in state.ignored)
    return news


def recounted_rooms(state: UserState, entries: Iterable[UserLogRow]) -> set[RoomId]:
    """Rooms whose unread counts changed without a record of the room."""
    rooms: set[RoomId] = set()
    for entry in entries:
        if entry.kind == UserLogKind.UNREAD or (
            entry.kind == UserLogKind.RECEIPT and entry.key in read_positions.COUNTED
        ):
            rooms.add(RoomId(entry.room_id))
        elif entry.kind in (UserLogKind.PUSH_RULES, UserLogKind.IGNORED_USERS):
            rooms.update(state.joined)
    return rooms

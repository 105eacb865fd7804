"""A sync answer read from PostgreSQL: the user log first, then one snapshot of each shard with its heads.

The order matters. A membership in the user log is younger than its record, so the shards read afterwards have
every record that the log speaks of. To-device messages are read last of all: an event is never shown before
the key that was sent ahead of it.

Spec: C-S API §Syncing; DESIGN.md section 5.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_user_id, server_of
from services.sync import tokens_ahead
from services.sync.away import standing_still
from services.sync.ephemeral import PresenceBoard, TypingBoard
from services.sync.erased_users import ErasedUsers
from services.sync.lazy_members import LazyMemory, Seen
from services.sync.rendering import (
    Json,
    account_data_event,
    has_text,
    presence_event,
    push_rules_event,
    stripped_events,
    to_device_event,
    typing_event,
    without_empty,
)
from services.sync.room_plan import (
    JOIN,
    PlannedRoom,
    RoomPlan,
    entries_by_kind,
    plan_incremental,
    plan_initial,
    plan_resync,
)
from services.sync.room_sections import ShardReader, ShardSections, UserView
from services.sync.sync_request import SyncRequest
from tessera.clock import Clock
from tessera.records import OrderKey
from tessera.storage import account_data, sync_accounts, sync_reads, user_log
from tessera.storage.account_data import AccountData
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.presence import Presence
from tessera.storage.read_positions import ReadPosition
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.state import list_state_keys
from tessera.storage.shards import RoomShards
from tessera.storage.sync_accounts import UserOverview
from tessera.storage.user_log import UserLogKind, UserLogRow
from tessera.storage.user_rooms import UserRoom
from tessera.sync_token import Point, SyncToken, encode_token
from tessera.unread import RoomUnread, own_evaluator, read_points

MAX_LOG_ENTRIES = 20_000  # a client that missed more is told everything anew
MAX_TO_DEVICE = 100
_NOW = OrderKey(1 << 62)
_ALWAYS = {"device_one_time_keys_count", "device_unused_fallback_key_types"}


@dataclass(slots=True)
class SyncAnswer:
    """An answer and the token after it.

    Attributes:
        unread: the counts of rooms that were counted, as of the token.
    """

    body: Json
    token: SyncToken
    is_empty: bool
    seen: Seen
    unread: dict[RoomId, RoomUnread] = field(default_factory=dict)

    def encode(self, memory: LazyMemory, request: SyncRequest) -> bytes:
        """The answer's bytes; what a lazily loading client was sent is remembered under the new token."""
        text = encode_token(self.token)
        memory.keep(request.user_id, request.device_id, text, self.seen)
        return orjson.dumps({"next_batch": text, **self.body})


@dataclass(slots=True)
class AccountView:
    """What was read of the account store.

    Attributes:
        is_rewound: the client's token says more than the user's log.
    """

    overview: UserOverview
    ignored: frozenset[UserId]
    rooms: list[UserRoom]
    entries: list[UserLogRow]
    data: list[AccountData]
    plan: RoomPlan
    view: UserView
    recount: set[RoomId]
    told_rules: bool
    joined: list[RoomId]  # all of them, whatever the filter says of rooms
    positions: list[ReadPosition]
    presence: list[Json] = field(default_factory=list)
    is_rewound: bool = False


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Reads answers from the stores.

    Attributes:
        instance: this process, for the counts of typing and presence in tokens.
    """

    accounts: Database
    shards: RoomShards
    clock: Clock
    typing: TypingBoard
    presence: PresenceBoard
    memory: LazyMemory
    instance: int
    presence_enabled: bool = True
    erased: ErasedUsers = field(default_factory=ErasedUsers)

    async def read(self, request: SyncRequest) -> SyncAnswer:
        """The answer to a request as of now."""
        counts = (self.typing.count, self.presence.count)
        view = await self._read_account(request)
        sections = await self._read_shards(request, view)
        seen = sections[0].seen if sections else self.memory.at(request.user_id, request.device_id, request.since_text)
        body: Json = {}
        rooms = self._room_sections(request, view, sections)
        if rooms:
            body["rooms"] = rooms
        if events := self._account_events(request, view):
            body["account_data"] = {"events": events}
        if view.presence:
            body["presence"] = {"events": view.presence}
        changed, left = await self._device_lists(request, view, sections)
        if changed or left:
            body["device_lists"] = {"changed": sorted(changed), "left": sorted(left)}
        to_device_position = await self._read_device(request, view, body)
        has_keys = any(
            entry.kind == UserLogKind.ONE_TIME_KEYS and entry.key == request.device_id for entry in view.entries
        )
        is_empty = not has_keys and not body.keys() - _ALWAYS
        unread = {room_id: one for shard in sections for room_id, one in shard.unread.items()}
        token = self._token(request, view, sections, to_device_position, counts)
        if request.since is not None and any(shard.is_away for shard in sections):
            token = token._replace(devices=request.since.devices)  # who shares a room with whom is not known
        return SyncAnswer(body, token, is_empty, seen, unread)

    async def _read_account(self, request: SyncRequest) -> AccountView:
        user_id, since = request.user_id, request.since
        async with self.accounts.snapshot() as tx:
            overview = await sync_accounts.find_overview(tx, user_id)
            rooms, positions = await sync_accounts.list_rooms_with_receipts(tx, user_id)
            entries: list[UserLogRow] = []
            if since is not None:
                entries = await user_log.list_after(tx, user_id, since.user, overview.log_head, MAX_LOG_ENTRIES + 1)
            ignored = parse_ignored(overview.ignored_list)
            wanted = request.filter.room
            joined = [room.room_id for room in rooms if room.membership == JOIN]
            rooms = [room for room in rooms if wanted.allows_room(room.room_id)]
            is_rewound = since is not None and max(since.user, since.to_device) > overview.log_head
            is_initial = since is None or is_rewound or len(entries) > MAX_LOG_ENTRIES
            if is_rewound:
                plan = plan_resync(rooms, ignored=ignored)
            elif is_initial:
                plan = plan_initial(rooms, include_leave=wanted.include_leave, ignored=ignored)
            else:
                plan = plan_incremental(rooms, entries, ignored)
            if blocks_invites(overview.invite_permission):
                plan.invites.clear()
            kinds = entries_by_kind(entries)
            recount = {
                RoomId(entry.room_id)
                for kind in (UserLogKind.RECEIPT, UserLogKind.UNREAD)
                for entry in kinds.get(kind, ())
            }
            if kinds.get(UserLogKind.PUSH_RULES) or kinds.get(UserLogKind.IGNORED_USERS):
                recount |= {one.room.room_id for one in plan.stays}
            data = await self._read_data(tx, request, plan, kinds, is_initial=is_initial)
            own_presence, others_presence = await self._read_presence(tx, request)
        presence = await self._shown_presence(request, joined, own_presence, others_presence)
        erased = await self.erased.up_to(self.accounts, overview.erasures_head)
        view = UserView(ignored, read_points(positions), own_evaluator(user_id, overview.push_rules), erased)
        told_rules = is_initial or bool(kinds.get(UserLogKind.PUSH_RULES))
        return AccountView(
            overview,
            ignored,
            rooms,
            entries,
            data,
            plan,
            view,
            recount,
            told_rules,
            joined,
            positions,
            presence,
            is_rewound,
        )

    async def _read_data(
        self,
        tx: Any,
        request: SyncRequest,
        plan: RoomPlan,
        kinds: Mapping[int, list[UserLogRow]],
        *,
        is_initial: bool,
    ) -> list[AccountData]:
        if is_initial:
            return await account_data.list_all(tx, request.user_id)
        keys = {
            (entry.room_id, entry.key)
            for kind in (UserLogKind.ACCOUNT_DATA, UserLogKind.ROOM_ACCOUNT_DATA)
            for entry in kinds.get(kind, ())
        }
        entered = [one.room.room_id for one in plan.entered]
        if not keys and not entered:
            return []
        return await sync_accounts.list_account_data(tx, request.user_id, keys, entered)

    async def _read_presence(self, tx: Any, request: SyncRequest) -> tuple[list[Presence], list[Presence]]:
        """Of those around the user, and of users of other servers of whom that is not known yet."""
        if not self.presence_enabled:
            return [], []
        since = request.since
        if since is None or since.instance != self.instance:
            return await sync_accounts.list_presence_around(tx, request.user_id)
        changed = {one.user_id: one for one in self.presence.changed_since(since.presence)}
        if not changed:
            return [], []
        pairs = await sync_accounts.list_neighbours(tx, changed, [request.user_id])
        found = [changed[pair[0]] for pair in pairs]
        if request.user_id in changed and request.user_id not in {one.user_id for one in found}:
            found.append(changed[request.user_id])
        own = server_of(request.user_id)
        return found, [one for one in changed.values() if server_of(one.user_id) != own]

    async def _shown_presence(
        self, request: SyncRequest, joined: Collection[RoomId], own: list[Presence], others: list[Presence]
    ) -> list[Json]:
        wanted = request.filter.presence
        others = [one for one in others if wanted.allows("m.presence", one.user_id)]
        try:
            sharing = await self._list_sharing(joined, {one.user_id for one in others})
        except DatabaseUnavailable:  # presence is never worth the answer
            sharing = set()
        found = [one for one in own if wanted.allows("m.presence", one.user_id)]
        found += [one for one in others if one.user_id in sharing]
        now_ms = self.clock.now_ms()
        return [presence_event(one, now_ms) for one in found]

    async def _read_shards(self, request: SyncRequest, view: AccountView) -> list[ShardSections]:
        seen = self.memory.at(request.user_id, request.device_id, request.since_text)
        groups: dict[str, list[PlannedRoom]] = {}
        for one in view.plan.with_events:
            partition = self.shards.partition_of(one.room.room_id)
            groups.setdefault(self.shards.shard_of(partition), []).append(one)
        partitions: dict[str, set[int]] = {}
        for room_id in view.joined:
            partition = self.shards.partition_of(room_id)
            partitions.setdefault(self.shards.shard_of(partition), set()).add(partition)

        async def read(shard: str) -> ShardSections:
            planned = groups.get(shard, [])
            wanted = partitions.get(shard, set()) | {one.room.partition for one in planned}
            try:
                async with self.shards.databases[shard].snapshot() as tx:
                    reader = ShardReader(tx, request, view.view, self.clock.now_ms(), seen, view.recount)
                    return await reader.read(planned, wanted)
            except (DatabaseUnavailable, OSError, TimeoutError):
                still = standing_still(request, planned, wanted, view.recount, seen)
                if still is None or view.is_rewound:
                    raise
                return still

        found = await asyncio.gather(*(read(shard) for shard in sorted(groups.keys() | partitions.keys())))
        if len(found) > 1:  # the memories of several shards concern different rooms
            merged = found[0].seen
            for other in found[1:]:
                for room_id, members in other.seen.items():
                    if seen.get(room_id) != members:
                        merged = merged.set(room_id, members)
            found[0].seen = merged
        return list(found)

    def _room_sections(self, request: SyncRequest, view: AccountView, sections: Sequence[ShardSections]) -> Json:
        join: dict[RoomId, Json] = {}
        leave: dict[RoomId, Json] = {}
        for shard in sections:
            join |= shard.join
            leave |= shard.leave
        self._add_unheld(request, view, leave)
        self._add_room_data(request, view, join, leave)
        self._add_ephemeral(request, view, join)
        invites = {room.room_id: {"invite_state": stripped_events(room.stripped_state)} for room in view.plan.invites}
        knocks = {room.room_id: {"knock_state": stripped_events(room.stripped_state)} for room in view.plan.knocks}
        return without_empty({"join": join, "invite": invites, "knock": knocks, "leave": leave})

    def _add_unheld(self, request: SyncRequest, view: AccountView, leave: dict[RoomId, Json]) -> None:
        """Left rooms that this server has no events of (a refused invite of another server)."""
        for one in view.plan.left:
            if one.room.room_id not in leave:
                leave[one.room.room_id] = empty_section(request)

    def _add_room_data(
        self, request: SyncRequest, view: AccountView, join: dict[RoomId, Json], leave: dict[RoomId, Json]
    ) -> None:
        wanted = request.filter.room.account_data
        joined = {room.room_id for room in view.rooms if room.membership == "join"}
        for data in view.data:
            room_id = RoomId(data.room_id)
            if not room_id or not wanted.allows_room(room_id) or not wanted.allows(data.type, None):
                continue
            section = leave.get(room_id)
            if section is None and room_id in joined:
                section = join.setdefault(room_id, empty_section(request))
            if section is not None:
                section.setdefault("account_data", {"events": []})["events"].append(account_data_event(data))

    def _add_ephemeral(self, request: SyncRequest, view: AccountView, join: dict[RoomId, Json]) -> None:
        wanted = request.filter.room.ephemeral
        joined = [room.room_id for room in view.rooms if room.membership == "join" and wanted.allows_room(room.room_id)]
        if wanted.allows("m.typing", None):
            since = request.since
            count = since.typing if since is not None and since.instance == self.instance else None
            for room_id, users in self.typing.changed_since(count, joined).items():
                typists = [user_id for user_id in users if user_id not in view.ignored]
                section = join.setdefault(room_id, empty_section(request))
                section["ephemeral"]["events"].append(typing_event(typists))
        if wanted.allows("m.receipt", None):
            for room_id, event in private_receipts(request, view).items():
                if room_id in join:
                    join[room_id]["ephemeral"]["events"].append(event)

    def _account_events(self, request: SyncRequest, view: AccountView) -> list[Json]:
        wanted = request.filter.account_data
        events = [account_data_event(data) for data in view.data if not data.room_id and wanted.allows(data.type, None)]
        if view.told_rules and wanted.allows("m.push_rules", None):
            events.append(push_rules_event(request.user_id, view.overview.push_rules))
        return events

    async def _device_lists(
        self, request: SyncRequest, view: AccountView, sections: Sequence[ShardSections]
    ) -> tuple[set[UserId], set[UserId]]:
        if request.since is None:
            return set(), set()
        came = set().union(*(shard.came for shard in sections)) if sections else set()
        went = set().union(*(shard.went for shard in sections)) if sections else set()
        if any(shard.is_away for shard in sections):
            return came - {request.user_id}, set()
        return await self.find_device_lists(
            request.user_id, request.since.devices, view.overview.devices_head, view.joined, came, went
        )

    async def find_device_lists(
        self,
        user_id: UserId,
        after: int,
        up_to: int,
        joined: Collection[RoomId],
        came: Collection[UserId],
        went: Collection[UserId],
    ) -> tuple[set[UserId], set[UserId]]:
        """(changed, left) of device_lists: a query of the stream and one of each shard, none if nothing happened.

        Args:
            joined: the rooms of the user.
            came, went: users who joined or left a room that was or is shared with the user.
        """
        everybody: set[UserId] = set()
        mine: set[UserId] = set()
        if after < up_to:
            async with self.accounts.reading() as tx:
                everybody, mine = await sync_accounts.list_device_changes(tx, after, up_to, user_id)
        asked = everybody | set(came) | set(went)
        if not asked and not mine:
            return set(), set()
        sharing = await self._list_sharing(joined, asked - {user_id})
        changed = ((everybody | set(came)) & (sharing | {user_id})) | mine
        if user_id not in everybody:
            changed.discard(user_id)
        return changed, set(went) - sharing - {user_id}

    async def _list_sharing(self, joined: Collection[RoomId], users: Collection[UserId]) -> set[UserId]:
        if not users or not joined:
            return set()

        async def ask(shard: str, room_ids: list[RoomId]) -> set[UserId]:
            async with self.shards.databases[shard].reading() as tx:
                return await sync_reads.list_joined_among(tx, room_ids, users)

        groups = self.shards.group_rooms(joined)
        return set().union(*await asyncio.gather(*(ask(shard, rooms) for shard, rooms in groups.items())))

    async def read_member_forms(self, room_id: RoomId, user_ids: Collection[UserId]) -> dict[UserId, bytes]:
        """Current member events in client form, open at the end."""
        async with self.shards.of_room(room_id).reading() as tx:
            found = await sync_reads.list_members_at(tx, {room_id: (_NOW, user_ids)})
        return {user_id: member_form(row) for user_id, row in found[room_id].items()}

    async def read_heroes(self, room_id: RoomId) -> tuple[UserId, ...]:
        """The first members of a room that has no name, one more than are shown; nothing for one that has."""
        async with self.shards.of_room(room_id).reading() as tx:
            names = await list_state_keys(tx, room_id, [("m.room.name", ""), ("m.room.canonical_alias", "")])
            if has_text(pdu_of(names.get(("m.room.name", ""))), "name"):
                return ()
            if has_text(pdu_of(names.get(("m.room.canonical_alias", ""))), "alias"):
                return ()
            heroes = await sync_reads.list_heroes(tx, [room_id], None)
        return tuple(heroes[room_id])

    async def _read_device(self, request: SyncRequest, view: AccountView, body: Json) -> int:
        """Put the device's messages and key counts into the body; the to-device position after it."""
        # Messages to the device that its token covers may be others than it was told: none is left out.
        after = 0 if request.since is None or view.is_rewound else request.since.to_device
        async with self.accounts.reading() as tx:
            messages, counts = await sync_accounts.find_device_news(
                tx, request.user_id, request.device_id, after, MAX_TO_DEVICE
            )
        if messages:
            body["to_device"] = {"events": [to_device_event(message) for message in messages]}
        body["device_one_time_keys_count"] = {"signed_curve25519": 0, **counts.one_time}
        body["device_unused_fallback_key_types"] = counts.unused_fallback
        newest = messages[-1].position if messages else 0
        if len(messages) >= MAX_TO_DEVICE:
            return newest
        return max(after, view.overview.log_head, newest)

    def _token(
        self,
        request: SyncRequest,
        view: AccountView,
        sections: Sequence[ShardSections],
        to_device_position: int,
        counts: tuple[int, int],
    ) -> SyncToken:
        positions: dict[int, Point] = {}
        for shard in sections:
            positions |= shard.heads
        since = request.since or SyncToken()
        ahead = frozenset[int]().union(*(shard.ahead for shard in sections))
        for partition, point in since.positions.items():
            # A partition that is just moving must not take a client back; only what is known to be rewound does.
            if partition in positions and positions[partition] < point and partition not in ahead:
                positions[partition] = point
        tokens_ahead.tell(since, view.overview, ahead)
        return SyncToken(
            positions,
            view.overview.log_head,
            to_device_position,
            view.overview.devices_head,
            self.instance,
            *counts,
        )


def member_form(row: EventRow) -> bytes:
    """The client form of a member event."""
    fields = orjson.loads(row.pdu)
    form = {
        "content": fields["content"],
        "event_id": row.event_id,
        "origin_server_ts": row.origin_server_ts,
        "sender": row.sender,
        "state_key": row.state_key,
        "type": row.type,
    }
    return orjson.dumps(form)[:-1]


def pdu_of(row: EventRow | None) -> bytes | None:
    """The PDU of an event that may be missing."""
    return None if row is None else row.pdu


def empty_section(request: SyncRequest) -> Json:
    """A room in which nothing happened but what is added to it."""
    return {
        "timeline": {"events": [], "limited": False},
        "state_after" if request.use_state_after else "state": {"events": []},
        "ephemeral": {"events": []},
        "account_data": {"events": []},
    }


def private_receipts(request: SyncRequest, view: AccountView) -> dict[RoomId, Json]:
    """The reader's own m.read.private receipts, in rooms where they are news. Spec: C-S API §Private read receipts."""
    news = {
        (entry.room_id, orjson.loads(entry.body).get("thread_id", ""))
        for entry in view.entries
        if entry.kind == UserLogKind.RECEIPT and entry.key == "m.read.private" and entry.body is not None
    }
    entered = {one.room.room_id for one in view.plan.entered}
    events: dict[RoomId, Json] = {}
    for position in view.positions:
        if position.receipt_type != "m.read.private":
            continue
        if position.room_id not in entered and (position.room_id, position.thread_id) not in news:
            continue
        data: Json = {"ts": position.ts}
        if position.thread_id:
            data["thread_id"] = position.thread_id
        event = events.setdefault(position.room_id, {"type": "m.receipt", "content": {}})
        event["content"].setdefault(position.event_id, {})["m.read.private"] = {request.user_id: data}
    return events


def blocks_invites(content: bytes | None) -> bool:
    """Whether this m.invite_permission_config hides all invites. Spec: C-S API §Invite permission."""
    return content is not None and orjson.loads(content).get("default_action") == "block"


def parse_ignored(content: bytes | None) -> frozenset[UserId]:
    """The users of an m.ignored_user_list; what is malformed ignores nobody. Spec: C-S API §Ignoring users."""
    if content is None:
        return frozenset()
    users = orjson.loads(content).get("ignored_users")
    if not isinstance(users, dict):
        return frozenset()
    found = set()
    for user_id in users:
        try:
            found.add(parse_user_id(user_id))
        except InvalidIdentifier:
            continue
    return frozenset(found)

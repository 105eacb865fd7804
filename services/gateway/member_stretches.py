"""Members of a room as JSON that is made once for all readers, in stretches of some hundred.

What depends on the reader and the moment (`age`, `membership`) are places in the text, filled in for each answer: that
costs a fifth of a microsecond for an event, where making it anew costs ten.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import orjson

from matrixcore.events import client_fields
from matrixcore.identifiers import RoomId
from matrixcore.room_versions import RoomVersionRules
from matrixcore.visibility import Membership
from tessera.event_serving import neighbours_of
from tessera.records import OrderKey
from tessera.room_visibility import MembershipHistory
from tessera.storage.database import Database
from tessera.storage.room_reads.events import LOWEST
from tessera.storage.room_reads.member_lists import MemberRow, list_stretch

STRETCH = 500  # members
AT_ONCE = 100  # events made before others have their turn: about a millisecond

_NAMES = {membership: membership.value.encode() for membership in Membership}
_PLACED = b'"age":%d,"membership":"%b"}}'
_UNPLACED = b'"age":%d}}'


@dataclass(frozen=True, slots=True)
class MemberGroup:
    """Member events of one membership.

    Attributes:
        template: the events, with a comma between them, for the operator `%`.
        sent: origin_server_ts of each.
        anchors, subs: the place of each in the room's order; empty for events that have none.
        first: the lowest place.
    """

    membership: str | None
    template: bytes
    sent: "array[int]"
    anchors: "array[int]"
    subs: "array[int]"
    first: OrderKey

    def fill(self, history: MembershipHistory, now_ms: int) -> bytes:
        """The events for one reader."""
        ages = [now_ms - sent for sent in self.sent]
        if not self.anchors:
            return self.template % tuple(ages)
        names: Iterable[bytes]
        if (history.last_change or LOWEST) <= self.first:
            names = repeat(_NAMES[history.current])
        else:
            names = [_NAMES[history.after(key)] for key in zip(self.anchors, self.subs, strict=True)]
        return self.template % tuple(chain.from_iterable(zip(ages, names, strict=False)))


@dataclass(frozen=True, slots=True)
class MemberStretch:
    """Members who follow one another.

    Attributes:
        joined: names and avatars of those who are joined, members of a JSON object with a comma between them.
    """

    groups: tuple[MemberGroup, ...]
    joined: bytes

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.joined) + sum(len(group.template) + 20 * len(group.sent) for group in self.groups) + 500


async def make_stretch(rows: Sequence[MemberRow], rules: RoomVersionRules, room_id: RoomId) -> MemberStretch:
    """The stretch of these members; others have their turn meanwhile."""
    grouped: dict[tuple[str | None, bool], list[tuple[MemberRow, bytes]]] = {}
    joined: list[bytes] = []
    for start in range(0, len(rows), AT_ONCE):
        for row in rows[start : start + AT_ONCE]:
            shown = client_fields(row.pdu, row.event_id, rules)
            if row.membership == "join":
                joined.append(_profile_of(row, shown["content"]))
            event = _open_form(row, shown, rules, room_id)
            grouped.setdefault((row.membership, row.anchor is not None), []).append((row, event))
        await asyncio.sleep(0)
    groups = tuple(_make_group(membership, members) for (membership, _), members in grouped.items())
    return MemberStretch(groups, b",".join(joined))


async def read_stretches(
    database: Database, room_id: RoomId, rules: RoomVersionRules, at: OrderKey | None
) -> AsyncIterator[MemberStretch]:
    """All members, now or at a point of the room's order; no connection is held between two stretches."""
    after = ""
    while True:
        async with database.reading() as tx:
            rows = await list_stretch(tx, room_id, after, STRETCH, at=at)
        yield await make_stretch(rows, rules, room_id)
        if len(rows) < STRETCH:
            return
        after = rows[-1].state_key


def _open_form(row: MemberRow, shown: dict[str, Any], rules: RoomVersionRules, room_id: RoomId) -> bytes:
    """The event up to the place in `unsigned` where what depends on the reader stands."""
    shown["room_id"] = room_id
    unsigned = neighbours_of(row, rules, room_id)
    shown["unsigned"] = unsigned
    form = orjson.dumps(shown)[:-2].replace(b"%", b"%%")
    return form + b"," if unsigned else form


def _make_group(membership: str | None, members: Sequence[tuple[MemberRow, bytes]]) -> MemberGroup:
    is_placed = members[0][0].anchor is not None
    end = _PLACED if is_placed else _UNPLACED
    template = (end + b",").join([form for _, form in members]) + end
    sent = array("q", [row.origin_server_ts for row, _ in members])
    keys = [OrderKey(row.anchor, row.sub or 0) for row, _ in members if row.anchor is not None]
    anchors, subs = array("q", [key.anchor for key in keys]), array("q", [key.sub for key in keys])
    return MemberGroup(membership, template, sent, anchors, subs, min(keys, default=LOWEST))


def _profile_of(row: MemberRow, content: Any) -> bytes:
    if isinstance(content, orjson.Fragment):
        content = orjson.loads(row.pdu)["content"]
    shown = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
    profile = {key: value for key, value in shown.items() if isinstance(value, str)}
    return orjson.dumps(row.state_key) + b":" + orjson.dumps(profile)

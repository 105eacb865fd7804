"""Rooms told from their tails: what a wake costs while clients wait or have just been here.

Only what goes without saying: new events that follow what the client has. Members who come or go, names, redactions,
gaps and forks are read from PostgreSQL.

Spec: MSC4186 §Room results.
"""

from collections.abc import Sequence

import orjson

from services.sync.lazy_members import Seen, with_members
from services.sync.live_answers import LiveAnswers
from services.sync.sliding.request import Form, Json, SlidingRequest
from services.sync.sliding.required_state import MEMBER
from services.sync.sliding.room_plan import SILENT_KINDS, RoomTask
from services.sync.sliding.room_rendering import room_fields, unread_counts
from services.sync.user_states import UserState
from tessera.event_serving import Reader, close_form, serve_live_event
from tessera.pagination_token import encode_page_token, point_before
from tessera.records import EventBody, OrderKey

MAX_ROOMS = 8  # more are cheaper to read in one go

_SUMMARISED = frozenset((MEMBER, "m.room.name", "m.room.canonical_alias", "m.room.avatar"))


class LiveRooms:
    """Tells rooms from memory."""

    def __init__(self, live: LiveAnswers) -> None:
        self._live = live

    async def tell(
        self, state: UserState, request: SlidingRequest, task: RoomTask, seen: Seen, now_ms: int
    ) -> tuple[Json, Seen] | None:
        """The room and the members that the client then has; None if it has to be read.

        Raises:
            DatabaseUnavailable
        """
        events = _events(state, task)
        if events is None:
            return None
        tail, wanted = task.wanted.room.tail, task.wanted
        assert tail is not None
        fields = room_fields(wanted)
        told = _state(task, events, now_ms)
        shown = [
            (position, body)
            for position, body in events
            if body.state_key is not None or body.sender not in state.ignored
        ]
        if shown:
            reader = Reader(request.user_id, request.device_id, now_ms)
            fields["timeline"] = [
                orjson.Fragment(serve_live_event(body, reader, membership="join")) for _, body in shown
            ]
            fields["prev_batch"] = encode_page_token(point_before(OrderKey(shown[0][0])))
            fields["limited"] = False
            fields["num_live"] = sum(1 for position, _ in shown if position > task.live_from)
        wish = wanted.required_state
        if wish.lazy_members and not wish.wants_all_members:
            needed = {body.sender for _, body in shown} - seen.get(task.room_id, frozenset())
            members = await self._live.members(tail, needed) if needed else {}
            told += [close_form(form, None, ()) for form in members.values() if form is not None]
            seen = with_members(seen, task.room_id, needed)
        if told:
            fields["required_state"] = [orjson.Fragment(event) for event in told]
        if task.sent is not None and task.sent.is_dm != wanted.is_dm:
            fields["is_dm"] = wanted.is_dm
        if request.form is Form.EXPERIMENTAL:
            fields |= unread_counts(await self._live.unread(state, tail))
        return fields, seen


def _events(state: UserState, task: RoomTask) -> list[tuple[int, EventBody]] | None:
    """The events after what the client has, with their positions; None if there is more to it."""
    room, sent = task.wanted.room, task.sent
    tail = room.tail
    if tail is None or sent is None or task.is_left or task.is_expanded or not tail.floor <= task.floor:
        return None
    if task.floor < 0 or sent.stay != room.position or room.room_id in state.cuts:
        return None
    wish = task.wanted.required_state
    if wish is not sent.wish and wish.beyond(sent.wish).atoms:
        return None
    events: list[tuple[int, EventBody]] = []
    for record in tail.after(task.floor):
        if record.position > task.up_to:
            break
        body = record.body
        if record.kind in SILENT_KINDS:
            continue
        if not isinstance(body, EventBody) or body.redacted or body.forked or body.type in _SUMMARISED:
            return None
        events.append((record.position, body))
    return events if len(events) <= task.wanted.timeline_limit else None


def _state(task: RoomTask, events: Sequence[tuple[int, EventBody]], now_ms: int) -> list[bytes]:
    """The state events among these that are wanted, of each key the newest."""
    wish = task.wanted.required_state
    newest = {(body.type, body.state_key): body for _, body in events if body.state_key is not None}
    return [
        close_form(body.client, None, [b'"age":%d' % (now_ms - body.origin_server_ts)])
        for (event_type, state_key), body in newest.items()
        if wish.matches(event_type, state_key or "")
    ]

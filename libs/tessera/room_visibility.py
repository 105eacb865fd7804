"""What one user may see of a room: the memberships that the user had, put against each event.

The decision itself is `matrixcore.visibility.user_sight`; here is what it is asked with. Sync,
messages, context, relations and search judge by these functions alone.

Spec: C-S API §Room History Visibility.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

import orjson

from matrixcore.identifiers import EventId, UserId
from matrixcore.visibility import (
    HistoryVisibility,
    Membership,
    Sight,
    parse_history_visibility,
    parse_membership,
    user_sight,
)
from tessera.records import OrderKey
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.room_reads.relations import Bundle

_BEGINNING = OrderKey(-(1 << 62), -(1 << 30))


class MembershipHistory:
    """The memberships of one user in one room, by the room's order."""

    def __init__(self, user_id: UserId, steps: Sequence[MembershipStep]) -> None:
        self.user_id = user_id
        self._keys = [step.order for step in steps]
        self._memberships = [parse_membership(step.membership) for step in steps]
        # A user who was joined can be known to have joined later only before this key.
        self._last_join = max(
            (key for key, at in zip(self._keys, self._memberships, strict=True) if at is Membership.JOIN),
            default=_BEGINNING,
        )
        self._current = self._memberships[-1] if steps else Membership.LEAVE
        self._last_change = self._keys[-1] if steps else _BEGINNING
        self._joined_since = self._start_of_stay()

    @property
    def current(self) -> Membership:
        """The user's membership now."""
        return self._current

    @property
    def ever_joined(self) -> bool:
        """Whether the user has ever been in the room."""
        return self._last_join is not _BEGINNING

    @property
    def last_change(self) -> OrderKey | None:
        """Where the current membership began."""
        return self._keys[-1] if self._keys else None

    @property
    def start_of_presence(self) -> OrderKey | None:
        """Where the user was invited or joined who is joined now, or invited; None for everybody else."""
        start = None
        for key, membership in zip(reversed(self._keys), reversed(self._memberships), strict=True):
            if membership not in (Membership.JOIN, Membership.INVITE):
                break
            start = key
        return start

    @property
    def end_of_stay(self) -> OrderKey | None:
        """The end of what a user sees who was joined once and is no longer: the leave or ban after the last join."""
        if not self.ever_joined or self.current is Membership.JOIN:
            return None
        return self._keys[bisect_right(self._keys, self._last_join)]

    def joined_throughout(self, events: Iterable[EventRow]) -> bool:
        """Whether all the events lie above the beginning of a stay that lasts up to now. False may mean "perhaps"."""
        if self._joined_since is None:
            return False
        anchor = self._joined_since.anchor
        return all(event.anchor is not None and event.anchor > anchor for event in events)

    def before(self, key: OrderKey) -> Membership:
        """The membership in the state before the event at `key`."""
        at = bisect_left(self._keys, key)
        return self._memberships[at - 1] if at else Membership.LEAVE

    def after(self, key: tuple[int, int]) -> Membership:
        """The membership once the event at `key` counts."""
        if key >= self._last_change:
            return self._current
        at = bisect_right(self._keys, key)
        return self._memberships[at - 1] if at else Membership.LEAVE

    def joins_after(self, key: OrderKey) -> bool:
        """Whether the user joined at any point after the event at `key`."""
        return self._last_join > key

    def _start_of_stay(self) -> OrderKey | None:
        start = None
        for key, membership in zip(reversed(self._keys), reversed(self._memberships), strict=True):
            if membership is not Membership.JOIN:
                break
            start = key
        return start


def list_visible(events: Sequence[EventRow], history: MembershipHistory) -> list[EventRow]:
    """Those of the events that the user sees, in the same order. Who was joined at all of them sees them all."""
    if history.joined_throughout(events):
        return list(events)
    return [event for event in events if sight_of(event, history) is not Sight.HIDDEN]


def drop_unseen(bundles: Mapping[EventId, Bundle], history: MembershipHistory) -> None:
    """Take whole events that the user does not see out of what is bundled with others."""
    for bundle in bundles.values():
        if bundle.edit is not None and not list_visible([bundle.edit], history):
            bundle.edit = None
        if bundle.thread_latest is not None and not list_visible([bundle.thread_latest], history):
            bundle.thread_latest = None


def sight_of(event: EventRow, history: MembershipHistory, *, sender_erased: bool = False) -> Sight:
    """How the user sees an event that has its place in the room's order; outliers are hidden."""
    if event.anchor is None:
        return Sight.HIDDEN
    is_own = event.type == "m.room.member" and event.state_key == history.user_id
    return sight_at(
        event.order,
        event.history_visibility,
        history,
        membership_after=event.membership if is_own else None,
        visibility_after=_setting_of(event),
        sender_erased=sender_erased,
    )


def sight_at(
    key: OrderKey,
    history_visibility: str,
    history: MembershipHistory,
    *,
    membership_after: str | None = None,
    visibility_after: HistoryVisibility | None = None,
    sender_erased: bool = False,
) -> Sight:
    """`sight_of` for an event that is not a row.

    Args:
        history_visibility: the setting before the event.
        membership_after: of the user's own member event.
        visibility_after: of an m.room.history_visibility event.
    """
    return user_sight(
        parse_history_visibility(history_visibility),
        history.before(key),
        joined_later=history.joins_after(key),
        visibility_after=visibility_after,
        membership_after=None if membership_after is None else parse_membership(membership_after),
        sender_erased=sender_erased,
    )


def _setting_of(event: EventRow) -> HistoryVisibility | None:
    if event.type != "m.room.history_visibility" or event.state_key != "":
        return None
    return parse_history_visibility(orjson.loads(event.pdu)["content"].get("history_visibility"))

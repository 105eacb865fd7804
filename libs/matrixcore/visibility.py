"""Who may see an event: the one decision for sync, messages, context, search, relations, push and peers.

Spec: C-S API §Room History Visibility, "Server behaviour"; MSC4025 for erased senders.
"""

from enum import Enum, StrEnum


class HistoryVisibility(StrEnum):
    """The value of m.room.history_visibility that an event falls under."""

    WORLD_READABLE = "world_readable"
    SHARED = "shared"
    INVITED = "invited"
    JOINED = "joined"


class Membership(StrEnum):
    """A user's membership; LEAVE also stands for never having been there."""

    JOIN = "join"
    INVITE = "invite"
    KNOCK = "knock"
    LEAVE = "leave"
    BAN = "ban"


class Sight(Enum):
    """How an event is shown."""

    HIDDEN = "hidden"
    REDACTED = "redacted"  # as if it had been redacted: its sender was erased
    FULL = "full"


def parse_history_visibility(value: object) -> HistoryVisibility:
    """`content.history_visibility`; a missing or unknown value means `shared`."""
    try:
        return HistoryVisibility(value) if isinstance(value, str) else HistoryVisibility.SHARED
    except ValueError:
        return HistoryVisibility.SHARED


def parse_membership(value: object) -> Membership:
    """`content.membership`; a missing or unknown value means `leave`."""
    try:
        return Membership(value) if isinstance(value, str) else Membership.LEAVE
    except ValueError:
        return Membership.LEAVE


def user_sight(
    visibility: HistoryVisibility,
    membership: Membership,
    *,
    joined_later: bool,
    visibility_after: HistoryVisibility | None = None,
    membership_after: Membership | None = None,
    sender_erased: bool = False,
) -> Sight:
    """How a local user sees an event.

    Args:
        visibility: the room's setting in the state before the event.
        membership: the user's in the state before the event.
        joined_later: whether the user joined at any point after the event, even if no longer there.
        visibility_after: the new setting, where the event is m.room.history_visibility itself.
        membership_after: the new membership, where the event is the user's own m.room.member.
        sender_erased: whether the sender asked to be erased. Who was joined at the event keeps its text.
    """
    settings = (visibility,) if visibility_after is None else (visibility, visibility_after)
    memberships = (membership,) if membership_after is None else (membership, membership_after)
    if not any(_allows(setting, at, joined_later) for setting in settings for at in memberships):
        return Sight.HIDDEN
    if sender_erased and Membership.JOIN not in memberships:
        return Sight.REDACTED
    return Sight.FULL


def server_sight(
    visibility: HistoryVisibility,
    *,
    had_joined_user: bool,
    had_invited_user: bool,
    visibility_after: HistoryVisibility | None = None,
    sender_erased: bool = False,
) -> Sight:
    """How a peer that takes part in the room sees an event.

    A peer holds the events for all of its users, so what any of them may see is shown, and
    `shared` history is open to every server of the room.

    Args:
        had_joined_user, had_invited_user: whether a user of that server had this membership at the
            event; for a membership event of such a user, before it or after it.
    """
    settings = (visibility,) if visibility_after is None else (visibility, visibility_after)
    open_to_servers = HistoryVisibility.WORLD_READABLE in settings or HistoryVisibility.SHARED in settings
    as_invited = had_invited_user and HistoryVisibility.INVITED in settings
    if not (open_to_servers or had_joined_user or as_invited):
        return Sight.HIDDEN
    return Sight.REDACTED if sender_erased and not had_joined_user else Sight.FULL


def _allows(visibility: HistoryVisibility, membership: Membership, joined_later: bool) -> bool:
    """The five rules of the specification, for one state."""
    if visibility is HistoryVisibility.WORLD_READABLE:
        return True
    if membership is Membership.JOIN:
        return True
    if visibility is HistoryVisibility.SHARED and joined_later:
        return True
    return membership is Membership.INVITE and visibility is HistoryVisibility.INVITED

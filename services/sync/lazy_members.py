"""Which member events a lazily loading client has been sent: a memory that belongs to a token.

An answer to `since` remembers what the client knew at `since` and what the answer adds, under the new
token; two answers to one token do not disturb each other. A token that is not remembered (another instance, a
restart) means that members are sent again, which the specification allows.

Spec: C-S API §Lazy-loading room members.
"""

from collections import OrderedDict
from collections.abc import Iterable

from immutables import Map

from matrixcore.identifiers import RoomId, UserId

MAX_TOKENS = 4_000
MAX_MEMBERS_PER_ROOM = 200  # above it a room's memory begins anew
MAX_ROOMS_PER_TOKEN = 500

Seen = Map[RoomId, frozenset[UserId]]
NOTHING: Seen = Map()


class LazyMemory:
    """The newest MAX_TOKENS tokens with what their clients were sent."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[tuple[UserId, str, str], Seen] = OrderedDict()

    def at(self, user_id: UserId, device_id: str, token: str) -> Seen:
        """What the client of a token knows."""
        return self._tokens.get((user_id, device_id, token), NOTHING)

    def keep(self, user_id: UserId, device_id: str, token: str, seen: Seen) -> None:
        """Remember what the client will know once it has the answer with this token."""
        if not seen:
            return
        self._tokens[user_id, device_id, token] = seen
        self._tokens.move_to_end((user_id, device_id, token))
        if len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)


def with_members(seen: Seen, room_id: RoomId, members: Iterable[UserId]) -> Seen:
    """`seen` with members of a room added."""
    known = seen.get(room_id, frozenset())
    added = known.union(members)
    if added == known:
        return seen
    if len(added) > MAX_MEMBERS_PER_ROOM:
        added = frozenset(members)
    if room_id not in seen and len(seen) >= MAX_ROOMS_PER_TOKEN:
        seen = NOTHING
    return seen.set(room_id, added)

"""What another server may read of a room.

Only servers with members in it may read at all. Of the history they get what its visibility lets them see, and the
rest redacted: who needs an event for the DAG's sake must not learn more from it.

Spec: S-S API §Server Access Control Lists; C-S API §Room History Visibility.
"""

from bisect import bisect_right
from collections.abc import Sequence

from matrixcore.canonical_json import parse_exact_json
from matrixcore.events import load_event, redact_event
from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_room_id
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.visibility import HistoryVisibility, Sight, parse_history_visibility, server_sight
from services.federation_in.dependencies import FederationInDeps
from tessera.federation.acl import is_server_allowed
from tessera.http.errors import Forbidden, InvalidParam, NotFound
from tessera.records import OrderKey
from tessera.storage.database import Transaction
from tessera.storage.erased_users import list_erased
from tessera.storage.peer_events import MemberStep, PeerEvent, list_member_steps
from tessera.storage.peer_rooms import PeerRoom, list_peer_rooms

_OPEN = (HistoryVisibility.SHARED.value, HistoryVisibility.WORLD_READABLE.value)


async def require_peer_room(deps: FederationInDeps, tx: Transaction, room_id: RoomId, peer: ServerName) -> PeerRoom:
    """A room in which this server and the asking one have members.

    Raises:
        NotFound, Forbidden
    """
    room = (await list_peer_rooms(tx, [room_id], deps.server_name, peer)).get(room_id)
    if room is None or not room.is_joined:
        raise NotFound("This server is not in the room")
    if not is_server_allowed(room.acl, peer):
        raise Forbidden("Your server is denied access to the room")
    if not room.has_peer:
        raise Forbidden("Your server is not in the room")
    return room


def room_id_of(text: str) -> RoomId:
    """The room ID of a path."""
    try:
        return parse_room_id(text)
    except InvalidIdentifier as error:
        raise InvalidParam(f"roomId: {error}") from None


async def pdus_for_peer(
    deps: FederationInDeps, tx: Transaction, room: PeerRoom, peer: ServerName, events: Sequence[PeerEvent]
) -> list[bytes]:
    """The events as the server may see them, in the same order.

    Args:
        tx: of the room's shard.
    """
    senders = {event.sender for event in events if event.sender.endswith(f":{deps.server_name}")}
    erased: set[UserId] = set()
    if senders:
        async with deps.accounts.reading() as accounts:
            erased = set(await list_erased(accounts, list(senders)))
    steps: _ServerSteps | None = None
    if any(_needs_steps(event, peer, erased) for event in events):
        steps = _ServerSteps(await list_member_steps(tx, room.room_id, peer))
    return [_shown(event, room, peer, erased, steps) for event in events]


class _ServerSteps:
    """What memberships the users of one server had at each place of a room."""

    def __init__(self, steps: Sequence[MemberStep]) -> None:
        self._orders: list[OrderKey] = []
        self._counts: list[tuple[int, int]] = []
        memberships: dict[str, str | None] = {}
        joined = invited = 0
        for step in steps:
            before = memberships.get(step.user_id)
            memberships[step.user_id] = step.membership
            joined += (step.membership == "join") - (before == "join")
            invited += (step.membership == "invite") - (before == "invite")
            self._orders.append(step.order)
            self._counts.append((joined, invited))

    def at(self, order: OrderKey) -> tuple[bool, bool]:
        """Whether any was joined, and whether any was invited, in the room up to and with this place."""
        place = bisect_right(self._orders, order)
        joined, invited = self._counts[place - 1] if place else (0, 0)
        return joined > 0, invited > 0


def _needs_steps(event: PeerEvent, peer: ServerName, erased: set[UserId]) -> bool:
    if peer in event.servers:
        return False
    return event.history_visibility not in _OPEN or event.sender in erased


def _shown(
    event: PeerEvent, room: PeerRoom, peer: ServerName, erased: set[UserId], steps: _ServerSteps | None
) -> bytes:
    had_joined, had_invited = peer in event.servers, False
    if not had_joined and steps is not None and event.order is not None:
        before, after = steps.at(OrderKey(event.order.anchor, event.order.sub - 1)), steps.at(event.order)
        had_joined, had_invited = before[0] or after[0], before[1] or after[1]
    after_setting = None
    if event.type == "m.room.history_visibility" and event.state_key == "":
        after_setting = parse_history_visibility(parse_exact_json(event.pdu)["content"].get("history_visibility"))
    is_own = event.sender.endswith(f":{peer}")
    sight = server_sight(
        parse_history_visibility(event.history_visibility),
        had_joined_user=had_joined or is_own,
        had_invited_user=had_invited,
        visibility_after=after_setting,
        sender_erased=event.sender in erased,
    )
    if sight is Sight.FULL:
        return event.pdu
    rules = ROOM_VERSIONS[room.room_version]
    return redact_event(load_event(event.pdu, event.event_id, rules, room_id=room.room_id)).pdu

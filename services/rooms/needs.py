"""What a command needs to have loaded, so that a batch is built without a query in between."""

from collections.abc import Iterable, Mapping
from typing import Any

from matrixcore.auth_events import CREATE, JOIN_RULES, POWER_LEVELS, third_party_token
from matrixcore.identifiers import EventId, RoomId, ServerName, StateKey, UserId
from matrixcore.policy_servers import POLICY
from matrixcore.relations import parse_relation
from services.rooms.hot_rooms import HotRoom
from services.rooms.placing import HISTORY_VISIBILITY, STRIPPED
from services.rooms.room_work import MEMBER, local_user, may_be_state_key
from tessera.commands import Append, Command, CreateRoom, Draft, NewEvent, SetReceipts
from tessera.storage.rooms import Wanted

BASE: tuple[StateKey, ...] = (CREATE, POWER_LEVELS, HISTORY_VISIBILITY, POLICY)
MAX_MENTIONS_LOADED = 500  # of one event; those beyond do not count as mentions


def add_needs(wanted: Wanted, hot: HotRoom | None, command: Command, server_name: ServerName) -> None:
    """Add what the command needs and the room (None if it is not in memory) does not know yet."""
    room_id = command.room_id
    if hot is None:
        wanted.rooms[room_id] = None
    body = command.body
    if isinstance(body, Append | Draft):
        want_state(wanted, hot, room_id, state_keys_of(body.event, command.sender, server_name))
        want_events(wanted, hot, room_id, body.event)
    elif isinstance(body, CreateRoom):
        return  # a new room knows that it has nothing
    elif isinstance(body, SetReceipts):
        for receipt in body.receipts:
            if hot is None or receipt.event_id not in hot.recent:
                wanted.events.setdefault((room_id, receipt.event_id), False)
            wanted.receipts[room_id, receipt.receipt_type, receipt.user_id, receipt.thread_id] = None
    else:
        want_state(wanted, hot, room_id, BASE)


def state_keys_of(event: NewEvent, sender: UserId, server_name: ServerName) -> list[StateKey]:
    """The keys of current state that building and placing the event looks at."""
    content: Mapping[str, Any] = event.content
    keys: list[StateKey] = [*BASE, (MEMBER, sender)]
    if event.state_key is not None:
        keys.append((event.type, event.state_key))
        if event.type == MEMBER:
            keys += _member_keys(event.state_key, content)
    mentions = content.get("m.mentions")
    user_ids = mentions.get("user_ids") if isinstance(mentions, Mapping) else None
    if isinstance(user_ids, list):
        local = (user_id for user_id in user_ids if isinstance(user_id, str) and local_user(user_id, server_name))
        keys += [(MEMBER, user_id) for user_id in list(local)[:MAX_MENTIONS_LOADED]]
    return keys


def _member_keys(target: str, content: Mapping[str, Any]) -> list[StateKey]:
    keys: list[StateKey] = [JOIN_RULES]
    if content.get("membership") in ("invite", "knock"):
        keys += STRIPPED
        if (token := third_party_token(content)) is not None:
            keys.append(("m.room.third_party_invite", token))
    authoriser = content.get("join_authorised_via_users_server")
    if isinstance(authoriser, str):
        keys.append((MEMBER, authoriser))
    keys.append((MEMBER, target))
    return keys


def want_state(wanted: Wanted, hot: HotRoom | None, room_id: RoomId, keys: Iterable[StateKey]) -> None:
    for key in keys:
        if (hot is None or key not in hot.state) and may_be_state_key(key):
            wanted.state[(room_id, *key)] = None


def want_events(wanted: Wanted, hot: HotRoom | None, room_id: RoomId, event: NewEvent) -> None:
    if event.redacts is not None:
        wanted.events[room_id, event.redacts] = True
        target = None if hot is None else hot.recent.get(event.redacts)
        if target is not None and target.thread_root is not None:
            _want_thread(wanted, hot, room_id, target.thread_root)
    if "m.relates_to" not in event.content:
        return
    relation = parse_relation(event.content)
    if relation is None or relation.event_id is None:
        return
    known = None if hot is None else hot.recent.get(relation.event_id)
    if known is None:
        wanted.events.setdefault((room_id, relation.event_id), False)
        _want_thread(wanted, hot, room_id, relation.event_id)
        return
    if known.relates_to is not None and (hot is None or known.relates_to not in hot.recent):
        wanted.events.setdefault((room_id, known.relates_to), False)
    _want_thread(wanted, hot, room_id, known.thread_root or relation.event_id)


def _want_thread(wanted: Wanted, hot: HotRoom | None, room_id: RoomId, root: EventId) -> None:
    if hot is None or root not in hot.threads:
        wanted.threads[room_id, root] = None

"""What users have set about a room goes with them when they join the room that follows it.

Spec: C-S API §Room upgrades, "Server behaviour".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import RoomId, UserId
from matrixcore.push_rule_rooms import carry_room_rules
from matrixcore.push_rules import from_stored_form, stored_form
from tessera.storage.account_data import GLOBAL
from tessera.storage.database import Transaction
from tessera.storage.room_settings import DataKey, list_settings, lock_settings, set_settings

TAGS = "m.tag"
DIRECT = "m.direct"


class RoomMove(NamedTuple):
    """A user went from a room to its successor."""

    user_id: UserId
    old: RoomId
    new: RoomId


async def carry_settings(tx: Transaction, moves: Sequence[RoomMove]) -> dict[UserId, int]:
    """Copy tags, m.direct entries and push rules about the old rooms to the new ones. Repeatable.

    What a user has set about the new room already stays. Users who have no account here are left out.

    Returns:
        The new heads of the logs of users for whom something changed, to be published after COMMIT.
    """
    known = set(await lock_settings(tx, {move.user_id for move in moves}))
    moves = [move for move in moves if move.user_id in known]
    if not moves:
        return {}
    keys = {key for move in moves for key in _keys_of(move)}
    stored = await list_settings(tx, known, keys)
    data = {key: orjson.loads(content) for key, content in stored.data.items()}
    rules = {user_id: from_stored_form(orjson.loads(document)) for user_id, document in stored.rules.items()}
    carried, carried_rules = dict(data), dict(rules)
    for move in moves:
        carried.update(_carry_data(carried, move))
        if move.user_id in carried_rules:
            carried_rules[move.user_id] = carry_room_rules(carried_rules[move.user_id], move.old, move.new)
    return await set_settings(
        tx,
        {key: orjson.dumps(content) for key, content in carried.items() if data.get(key) != content},
        {user: orjson.dumps(stored_form(own)) for user, own in carried_rules.items() if rules[user] != own},
    )


def _keys_of(move: RoomMove) -> tuple[DataKey, ...]:
    return (move.user_id, move.old, TAGS), (move.user_id, move.new, TAGS), (move.user_id, GLOBAL, DIRECT)


def _carry_data(data: Mapping[DataKey, Any], move: RoomMove) -> dict[DataKey, Any]:
    """The account data that one move changes; clients may have stored anything there."""
    old_tags, new_tags, direct = _keys_of(move)
    changed: dict[DataKey, Any] = {}
    if tags := _tags_of(data.get(old_tags)):
        changed[new_tags] = {"tags": {**tags, **_tags_of(data.get(new_tags))}}
    chats = data.get(direct)
    if isinstance(chats, dict):
        changed[direct] = {other: _with_successor(rooms, move) for other, rooms in chats.items()}
    return changed


def _tags_of(content: Any) -> dict[str, Any]:
    tags = content.get("tags") if isinstance(content, dict) else None
    return tags if isinstance(tags, dict) else {}


def _with_successor(rooms: Any, move: RoomMove) -> Any:
    if not isinstance(rooms, list) or move.old not in rooms or move.new in rooms:
        return rooms
    return [*rooms, move.new]

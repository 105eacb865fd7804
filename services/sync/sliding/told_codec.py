"""What a connection was told, as bytes for the account store: a compressed JSON object.

Wishes are few and rooms are many, so that rooms name their wish by its number; within a wish each `exclude` is written
once, however many elements it takes something away from. Spec: none.
"""

import zlib
from typing import Any

import orjson
from immutables import Map

from matrixcore.identifiers import RoomId
from services.sync.sliding.required_state import Atom, Element, RequiredState
from services.sync.sliding.sent_rooms import Sent, SentRoom
from tessera.sync_token import Point

MAX_BYTES = 16 * 1024 * 1024  # of a connection, unpacked
_DM, _DATA, _RECEIPTS = 1, 2, 4


class UnreadableTold(ValueError):
    """What was stored cannot be read: the client has to begin anew."""


def encode_sent(rooms: Sent) -> bytes:
    """What `decode_sent` reads."""
    wishes: dict[RequiredState, int] = {}
    listed = {}
    for room_id, sent in rooms.items():
        number = wishes.setdefault(sent.wish, len(wishes))
        flags = _DM * sent.is_dm | _DATA * sent.has_data | _RECEIPTS * sent.has_receipts
        known = None if sent.known is None else list(sent.known)  # named tuples are no JSON
        listed[room_id] = (sent.membership, sent.stay, known, sent.timeline_limit, number, flags)
    return zlib.compress(orjson.dumps({"wishes": [_wish_fields(wish) for wish in wishes], "rooms": listed}), 1)


def decode_sent(data: bytes) -> Sent:
    """The inverse of `encode_sent`; rooms with equal wishes share one.

    Raises:
        UnreadableTold: it is too large, or another version wrote it.
    """
    try:
        return _sent(orjson.loads(zlib.decompressobj().decompress(data, MAX_BYTES)))
    except (zlib.error, ValueError, TypeError, KeyError, IndexError) as error:
        raise UnreadableTold(str(error)) from error


def _sent(value: dict[str, Any]) -> Sent:
    wishes = [_wish(fields) for fields in value["wishes"]]
    rooms = {}
    for room_id, (membership, stay, point, limit, number, flags) in value["rooms"].items():
        rooms[RoomId(room_id)] = SentRoom(
            membership,
            stay,
            None if point is None else Point(*point),
            limit,
            wishes[number],
            bool(flags & _DM),
            bool(flags & _DATA),
            bool(flags & _RECEIPTS),
        )
    return Map(rooms)


def _wish_fields(wish: RequiredState) -> list[Any]:
    groups: dict[frozenset[Element], list[Any]] = {}
    for atom in wish.atoms:
        groups.setdefault(atom.exclude, []).append([*atom.element, atom.is_lazy])
    listed = [[[list(one) for one in exclude], included] for exclude, included in groups.items()]
    return [listed, wish.lazy_members]


def _wish(fields: list[Any]) -> RequiredState:
    groups, lazy_members = fields
    atoms: set[Atom] = set()
    for listed, included in groups:
        exclude = frozenset(Element(*one) for one in listed)
        atoms.update(
            Atom(Element(event_type, state_key), exclude, is_lazy) for event_type, state_key, is_lazy in included
        )
    return RequiredState(frozenset(atoms), lazy_members)

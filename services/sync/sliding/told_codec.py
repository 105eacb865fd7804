"""What a connection was told, as bytes for the account store: a compressed JSON object.

Wishes are few and rooms are many, so that rooms name their wish by its number. Spec: none.
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
    """The inverse of `encode_sent`; rooms with equal wishes share one."""
    value = orjson.loads(zlib.decompressobj().decompress(data, MAX_BYTES))
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
    atoms = [[*atom.element, [list(one) for one in atom.exclude], atom.is_lazy] for atom in wish.atoms]
    return [atoms, wish.lazy_members]


def _wish(fields: list[Any]) -> RequiredState:
    atoms, lazy_members = fields
    return RequiredState(
        frozenset(
            Atom(Element(event_type, state_key), frozenset(Element(*one) for one in exclude), is_lazy)
            for event_type, state_key, exclude, is_lazy in atoms
        ),
        lazy_members,
    )

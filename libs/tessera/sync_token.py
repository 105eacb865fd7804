"""Sync tokens: how far a client has read every stream that /sync draws from.

A token (V, u, t, d, ...) means: all records at or below V of the rooms in which the user log at u has
the user, cut at the user's own leave, and the whole user log up to u (DESIGN section 5). It is opaque to
clients and stays valid over restarts. A different incarnation of a partition makes its rooms limited.

Form: "s1" and URL-safe base64 without padding of little-endian integers: u, to-device, device changes (64
bits each), instance, typing, presence (32 bits each), then 64 bits for each partition: 12 bits partition, 12
bits incarnation, 40 bits position.

A `pos` of sliding sync (MSC4186) is a sync token too: what it says of the connection stands behind a dot.
"""

import binascii
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

VERSION_PREFIX = "s1"
MAX_PARTITIONS = 4096
MAX_TOKEN_LENGTH = 60_000

_HEAD = struct.Struct("<QQQIII")
_POSITION_BITS = 40
_PARTITION_SHIFT = 52
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_INCARNATION_MASK = 0xFFF
_MAX_SIGNED = (1 << 63) - 1


class InvalidSyncToken(ValueError):
    """Not a sync token, or one of a format that this release does not know; answer 400 M_INVALID_PARAM."""


class Point(NamedTuple):
    """A position of one partition."""

    incarnation: int
    position: int


class SyncToken(NamedTuple):
    """What a client has seen.

    Attributes:
        positions: V, for the partitions in which the user had rooms.
        user: position of the user's log.
        to_device: position of the last to-device message handed out; they have positions of the user log.
        devices: position of the stream of device changes.
        instance: which process counted `typing` and `presence`; to any other they mean nothing.
    """

    positions: Mapping[int, Point] = MappingProxyType({})
    user: int = 0
    to_device: int = 0
    devices: int = 0
    instance: int = 0
    typing: int = 0
    presence: int = 0


def encode_token(token: SyncToken) -> str:
    """The token as clients get it."""
    packed = [
        partition << _PARTITION_SHIFT | point[0] << _POSITION_BITS | point[1]
        for partition, point in token.positions.items()
    ]
    head = _HEAD.pack(token.user, token.to_device, token.devices, token.instance, token.typing, token.presence)
    body = urlsafe_b64encode(head + struct.pack(f"<{len(packed)}Q", *packed))
    return VERSION_PREFIX + body.rstrip(b"=").decode()


@lru_cache(maxsize=512)  # 10 KB each for 64 partitions
def decode_token(text: str) -> SyncToken:
    """The inverse of `encode_token`.

    Raises:
        InvalidSyncToken
    """
    if not text.startswith(VERSION_PREFIX) or len(text) > MAX_TOKEN_LENGTH or not text.isascii():
        raise InvalidSyncToken("not a sync token")
    body = text[len(VERSION_PREFIX) :].partition(".")[0]
    try:
        data = urlsafe_b64decode(body + "=" * (-len(body) % 4))
        user, to_device, devices, instance, typing, presence = _HEAD.unpack_from(data)
        packed = struct.unpack(f"<{(len(data) - _HEAD.size) // 8}Q", data[_HEAD.size :])
    except (binascii.Error, struct.error, ValueError) as error:
        raise InvalidSyncToken("not a sync token") from error
    if max(user, to_device, devices) > _MAX_SIGNED:
        raise InvalidSyncToken("not a sync token")
    positions = {
        value >> _PARTITION_SHIFT: Point(value >> _POSITION_BITS & _INCARNATION_MASK, value & _POSITION_MASK)
        for value in packed
    }
    return SyncToken(positions, user, to_device, devices, instance, typing, presence)


def component_for(text: str, partition: int) -> int | None:
    """What a sync token means as from, to or at in a room of this partition: an anchor of the room's order.

    None if the token says nothing about the partition: then the user had no room there.

    Raises:
        InvalidSyncToken
    """
    point = decode_token(text).positions.get(partition)
    return None if point is None else point.position

"""Page tokens: points of a room's one order, as clients carry them.

A token stands between events: all events with a key at or below it lie before it. So a page going
backwards begins at the token's key, one going forwards after it, and the point before an event is
the key below its own, which keeps what is backfilled there later on the right side.

A sync token is taken as well; it counts as its component for the room's partition (DESIGN
section 4).
"""

import re

from tessera.records import OrderKey

_TOKEN = re.compile(r"t([0-9]{1,18})(?:-([0-9]{1,9}))?")


class InvalidPageToken(ValueError):
    """Not a page token."""


def encode_page_token(key: OrderKey) -> str:
    """The point just after the event at `key`."""
    return f"t{key.anchor}" if key.sub == 0 else f"t{key.anchor}-{-key.sub}"


def point_before(key: OrderKey) -> OrderKey:
    """The point just before the event at `key`: what prev_batch and `end` of a page going backwards name."""
    return OrderKey(key.anchor, key.sub - 1)


def parse_page_token(text: str) -> OrderKey:
    """The point that a page token names.

    Raises:
        InvalidPageToken
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise InvalidPageToken("not a page token")
    return OrderKey(int(match[1]), -int(match[2] or 0))

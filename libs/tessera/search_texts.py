"""Which text of an event is searched. Spec: C-S API §Server Side Search, "room_events"."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final


class SearchKind(IntEnum):
    """A searched key; the numbers are stored."""

    BODY = 0
    NAME = 1
    TOPIC = 2


SEARCHED_TYPES: Final[Mapping[str, SearchKind]] = {
    "m.room.message": SearchKind.BODY,
    "m.room.name": SearchKind.NAME,
    "m.room.topic": SearchKind.TOPIC,
}

KINDS_BY_KEY: Final[Mapping[str, SearchKind]] = {
    "content.body": SearchKind.BODY,
    "content.name": SearchKind.NAME,
    "content.topic": SearchKind.TOPIC,
}


def searched_text(event_type: str, content: Mapping[str, Any]) -> str | None:
    """The text of an event by which it is found; None if it has none.

    In small letters; what PostgreSQL cannot store (NUL) becomes a space.
    """
    match SEARCHED_TYPES.get(event_type):
        case SearchKind.BODY:
            texts = [content.get("body")]
        case SearchKind.NAME:
            texts = [content.get("name")]
        case SearchKind.TOPIC:
            texts = [content.get("topic"), _plain_topic(content.get("m.topic"))]
        case _:
            return None
    found = dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip())
    # PostgreSQL's own lower() knows ASCII only where its locale is C.
    return " ".join(found).replace("\0", " ").lower() or None


def _plain_topic(block: object) -> object:
    """The body of the text/plain representation; a representation without a type is plain."""
    representations = block.get("m.text") if isinstance(block, Mapping) else None
    if not isinstance(representations, list):
        return None
    for one in representations:
        if isinstance(one, Mapping) and one.get("mimetype", "text/plain") == "text/plain":
            return one.get("body")
    return None

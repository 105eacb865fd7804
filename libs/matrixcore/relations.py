"""How an event relates to another: replies, edits, annotations, threads, references.

Spec: C-S API §Forming relationships between events, and the modules event replacements,
threading, event annotations, reference relations, rich replies.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from matrixcore.events import Event
from matrixcore.identifiers import EventId

REPLACE: Final = "m.replace"
THREAD: Final = "m.thread"
ANNOTATION: Final = "m.annotation"
REFERENCE: Final = "m.reference"

BUNDLED_REL_TYPES: Final = frozenset((REPLACE, THREAD, REFERENCE))
"""What goes into unsigned.m.relations. Annotations are not bundled (§Event annotations and reactions)."""

MAX_THREAD_HOPS: Final = 3
"""How far an event is followed to its thread (§Marking notifications as read)."""

_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class Relation:
    """A well-formed m.relates_to. `rel_type` and `event_id` are both set or, for a plain reply, both None."""

    rel_type: str | None
    event_id: EventId | None
    key: str | None  # of annotations
    is_falling_back: bool  # the reply in this thread event is for clients without threads only
    in_reply_to: EventId | None


def parse_relation(content: Mapping[str, Any]) -> Relation | None:
    """The relation of an event with this content; what does not match the schema is no relation.

    A broken rel_type or event_id leaves a valid reply in force and the other way round.
    """
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, Mapping):
        return None
    reply = relates_to.get("m.in_reply_to")
    in_reply_to = _event_id(reply.get("event_id")) if isinstance(reply, Mapping) else None
    rel_type, event_id = relates_to.get("rel_type"), _event_id(relates_to.get("event_id"))
    if event_id is None or not _is_name(rel_type):
        return None if in_reply_to is None else Relation(None, None, None, False, in_reply_to)
    key = relates_to.get("key")
    return Relation(
        rel_type,
        event_id,
        key if isinstance(key, str) and "\0" not in key else None,
        relates_to.get("is_falling_back") is True,
        in_reply_to,
    )


def thread_root(relation: Relation | None) -> EventId | None:
    """The root of the thread that the event itself names."""
    return relation.event_id if relation is not None and relation.rel_type == THREAD else None


def find_thread(relation: Relation | None, relation_of: Callable[[EventId], Relation | None]) -> EventId | None:
    """The thread that an event belongs to, through its parents too: a reaction to a threaded message, say.

    Args:
        relation: of the event itself.
        relation_of: of its ancestors by relation; None where unknown or unrelated. Asked at most
            MAX_THREAD_HOPS - 1 times.

    Returns:
        The thread root, or None for the main timeline (which a thread's root belongs to).
    """
    for hop in range(MAX_THREAD_HOPS):
        if relation is None or relation.event_id is None:
            return None
        if relation.rel_type == THREAD:
            return relation.event_id
        if hop + 1 < MAX_THREAD_HOPS:
            relation = relation_of(relation.event_id)
    return None


def may_start_thread(root: Relation | None) -> bool:
    """Whether an event with this relation may be a thread's root: not if it has a rel_type itself."""
    return root is None or root.rel_type is None


def check_edit(original: Event, edit: Event) -> str | None:
    """Why `edit` is no valid replacement of `original`; None if it is.

    Of an encrypted edit, the m.new_content is not visible here and is not asked for.

    Spec: C-S API §Validity of replacement events.
    """
    relation = parse_relation(edit.content)
    if relation is None or relation.rel_type != REPLACE or relation.event_id != original.event_id:
        return "does not replace this event"
    if original.room_id != edit.room_id:
        return "is in another room"
    if original.sender != edit.sender:
        return "has another sender"
    if original.type != edit.type:
        return "has another type"
    if original.state_key is not None or edit.state_key is not None:
        return "state events cannot be edited"
    its_relation = parse_relation(original.content)
    if its_relation is not None and its_relation.rel_type == REPLACE:
        return "an edit cannot be edited"
    if edit.type != "m.room.encrypted" and not isinstance(edit.content.get("m.new_content"), Mapping):
        return "has no m.new_content"
    return None


def newest_edit(edits: Iterable[Event]) -> Event | None:
    """The edit that counts among valid ones: by origin_server_ts, then by event ID."""
    return max(edits, key=lambda edit: (edit.origin_server_ts, edit.event_id), default=None)


def check_annotation(target: Relation | None) -> str | None:
    """Why an event with this relation of its own cannot be annotated; None if it can."""
    if target is not None and target.rel_type in (ANNOTATION, REPLACE):
        return "edits and annotations cannot be annotated"
    return None


def annotation_identity(event_type: str, content: Mapping[str, Any]) -> tuple[EventId, str, str] | None:
    """(target, event type, key): what a user may send once only (M_DUPLICATE_ANNOTATION).

    None for anything but an annotation with a key.
    """
    relation = parse_relation(content)
    if relation is None or relation.rel_type != ANNOTATION or relation.event_id is None or relation.key is None:
        return None
    return relation.event_id, event_type, relation.key


def _event_id(value: object) -> EventId | None:
    return EventId(value) if _is_name(value) and value.startswith("$") else None


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value.encode()) <= _MAX_NAME_BYTES and "\0" not in value

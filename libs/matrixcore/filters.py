"""Filters for /sync, /messages, /context and the like: parsed once, then fast predicates.

Spec: C-S API §Filtering (Filter, RoomFilter, RoomEventFilter, EventFilter).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from matrixcore.globs import Matcher, type_pattern_matcher
from matrixcore.property_paths import parse_property_path

MAX_LIMIT: Final = 1_000  # events; larger limits are lowered to it
MAX_LIST_LENGTH: Final = 10_000  # rooms, senders, types in one list
MAX_TYPE_PATTERNS: Final = 100  # of them with a wildcard, since each is tried in turn
MAX_PATH_DEPTH: Final = 100  # names in one entry of event_fields


class InvalidFilter(ValueError):
    """The filter does not fit its schema (400). `field` is the dotted path of what is wrong."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field = field_name


@dataclass(frozen=True, slots=True)
class TypeSet:
    """Event types, some with `*`."""

    exact: frozenset[str]
    patterns: tuple[Matcher, ...]

    def matches(self, event_type: str) -> bool:
        return event_type in self.exact or any(matches(event_type) for matches in self.patterns)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What applies to any event; None for an inclusion means everything."""

    limit: int | None = None  # events, 0 to MAX_LIMIT; None is the endpoint's default
    types: TypeSet | None = None
    not_types: TypeSet | None = None
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()

    def allows(self, event_type: str, sender: str | None) -> bool:
        """Whether an event of this type and sender is wanted; presence and account data have no other traits."""
        if self.types is not None and not self.types.matches(event_type):
            return False
        if self.not_types is not None and self.not_types.matches(event_type):
            return False
        if self.senders is not None and sender not in self.senders:
            return False
        return sender not in self.not_senders

    def limit_or(self, default: int) -> int:
        return default if self.limit is None else self.limit


@dataclass(frozen=True, slots=True)
class RoomEventFilter(EventFilter):
    """What applies to a room's events."""

    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    related_by_rel_types: frozenset[str] | None = None
    related_by_senders: frozenset[str] | None = None

    def allows_room(self, room_id: str) -> bool:
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def allows_event(self, event_type: str, sender: str, room_id: str, content: Mapping[str, Any]) -> bool:
        """Everything but the conditions on related events (`needs_relations`)."""
        if self.contains_url is not None and self.contains_url is not ("url" in content):
            return False
        return self.allows_room(room_id) and self.allows(event_type, sender)

    @property
    def needs_relations(self) -> bool:
        """Whether `allows_relations` has to be asked as well."""
        return self.related_by_rel_types is not None or self.related_by_senders is not None

    def allows_relations(self, children: Iterable[tuple[str, str]]) -> bool:
        """Whether one event that relates to the event fits.

        Args:
            children: (rel_type, sender) of the events that relate to it.
        """
        return not self.needs_relations or any(
            (self.related_by_rel_types is None or rel_type in self.related_by_rel_types)
            and (self.related_by_senders is None or sender in self.related_by_senders)
            for rel_type, sender in children
        )

    @property
    def allows_everything(self) -> bool:
        """Whether no event is ever refused, whatever the limit: bytes can be served unseen."""
        return (
            self.types is None
            and self.not_types is None
            and self.senders is None
            and not self.not_senders
            and self.rooms is None
            and not self.not_rooms
            and self.contains_url is None
            and not self.needs_relations
        )


@dataclass(frozen=True, slots=True)
class RoomFilter:
    """Which rooms, and which of their events."""

    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    include_leave: bool = False
    timeline: RoomEventFilter = RoomEventFilter()
    state: RoomEventFilter = RoomEventFilter()
    ephemeral: RoomEventFilter = RoomEventFilter()
    account_data: RoomEventFilter = RoomEventFilter()

    def allows_room(self, room_id: str) -> bool:
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)


@dataclass(frozen=True, slots=True)
class EventFields:
    """The projection that event_fields asks for; a tree of names whose leaves are whole values."""

    tree: Mapping[str, Any]

    @classmethod
    def of(cls, paths: Iterable[str]) -> Self:
        tree: dict[str, Any] = {}
        for path in paths:
            *parents, leaf = parse_property_path(path)
            branch: dict[str, Any] | None = tree
            for name in parents:
                # None is a leaf: the whole value is asked for already.
                branch = branch.setdefault(name, {}) if branch is not None else None
            if branch is not None:
                branch[leaf] = None
        return cls(tree)

    def project(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event with the fields asked for and no others; objects left without any are dropped."""
        return _projected(event, self.tree)


@dataclass(frozen=True, slots=True)
class Filter:
    """A whole filter of /sync."""

    event_fields: EventFields | None = None  # None is every field
    federation_format: bool = False
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    room: RoomFilter = RoomFilter()

    @property
    def lazy_load_members(self) -> bool:
        """/sync lazy-loads by the filter of its state."""
        return self.room.state.lazy_load_members

    @property
    def unread_thread_notifications(self) -> bool:
        """Whether unread counts are wanted by thread, which the filter of the timeline says."""
        return self.room.timeline.unread_thread_notifications


def parse_filter(body: object) -> Filter:
    """A filter as it is uploaded or given inline to /sync. Unknown keys mean nothing. Raises InvalidFilter."""
    fields = _Fields.of(body, "filter", prefix="")
    event_format = fields.text("event_format") or "client"
    if event_format not in ("client", "federation"):
        raise InvalidFilter("event_format", "must be client or federation")
    paths = fields.texts("event_fields")
    if paths is not None and any(len(parse_property_path(path)) > MAX_PATH_DEPTH for path in paths):
        raise InvalidFilter("event_fields", f"a path has more than {MAX_PATH_DEPTH} names")
    return Filter(
        event_fields=None if paths is None else EventFields.of(paths),
        federation_format=event_format == "federation",
        presence=_event_filter(fields.child("presence")),
        account_data=_event_filter(fields.child("account_data")),
        room=_room_filter(fields.child("room")),
    )


def parse_room_event_filter(body: object) -> RoomEventFilter:
    """A RoomEventFilter, as /messages and /context take it. Raises InvalidFilter."""
    return _room_event_filter(_Fields.of(body, "filter", prefix=""))


@dataclass(frozen=True, slots=True)
class _Fields:
    """A JSON object whose members are taken out with their checks."""

    values: Mapping[str, Any]
    prefix: str  # the dotted path to here, ending in a dot

    @classmethod
    def of(cls, body: object, name: str, *, prefix: str) -> Self:
        if not isinstance(body, dict):
            raise InvalidFilter(name, "must be an object")
        return cls(body, prefix)

    def child(self, name: str) -> "_Fields":
        path = self.prefix + name
        return _Fields.of(self.values.get(name, {}), path, prefix=path + ".")

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise InvalidFilter(self.prefix + name, "must be true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise InvalidFilter(self.prefix + name, "must be a string")
        return value

    def texts(self, name: str, sigil: str = "") -> frozenset[str] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise InvalidFilter(self.prefix + name, "must be a list of strings")
        if len(value) > MAX_LIST_LENGTH:
            raise InvalidFilter(self.prefix + name, f"more than {MAX_LIST_LENGTH} entries")
        if not all(entry.startswith(sigil) for entry in value):
            raise InvalidFilter(self.prefix + name, f"must hold IDs that start with {sigil}")
        return frozenset(value)

    def types(self, name: str) -> TypeSet | None:
        texts = self.texts(name)
        if texts is None:
            return None
        patterns = sorted(text for text in texts if "*" in text)
        if len(patterns) > MAX_TYPE_PATTERNS:
            raise InvalidFilter(self.prefix + name, f"more than {MAX_TYPE_PATTERNS} types with a wildcard")
        return TypeSet(texts.difference(patterns), tuple(map(type_pattern_matcher, patterns)))

    def limit(self) -> int | None:
        value = self.values.get("limit")
        if value is None:
            return None
        # The specification wants more than 0; clients send 0 for "no events", and it has but one meaning.
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidFilter(self.prefix + "limit", "must be a positive integer")
        return min(value, MAX_LIMIT)


def _event_filter(fields: _Fields) -> EventFilter:
    return EventFilter(**_event_parts(fields))


def _event_parts(fields: _Fields) -> dict[str, Any]:
    return {
        "limit": fields.limit(),
        "types": fields.types("types"),
        "not_types": fields.types("not_types"),
        "senders": fields.texts("senders", "@"),
        "not_senders": fields.texts("not_senders", "@") or frozenset(),
    }


def _room_event_filter(fields: _Fields) -> RoomEventFilter:
    return RoomEventFilter(
        **_event_parts(fields),
        rooms=fields.texts("rooms", "!"),
        not_rooms=fields.texts("not_rooms", "!") or frozenset(),
        contains_url=fields.flag("contains_url"),
        lazy_load_members=fields.flag("lazy_load_members") or False,
        include_redundant_members=fields.flag("include_redundant_members") or False,
        unread_thread_notifications=fields.flag("unread_thread_notifications") or False,
        related_by_rel_types=fields.texts("related_by_rel_types"),
        related_by_senders=fields.texts("related_by_senders", "@"),
    )


def _room_filter(fields: _Fields) -> RoomFilter:
    return RoomFilter(
        rooms=fields.texts("rooms", "!"),
        not_rooms=fields.texts("not_rooms", "!") or frozenset(),
        include_leave=fields.flag("include_leave") or False,
        timeline=_room_event_filter(fields.child("timeline")),
        state=_room_event_filter(fields.child("state")),
        ephemeral=_room_event_filter(fields.child("ephemeral")),
        account_data=_room_event_filter(fields.child("account_data")),
    )


def _projected(source: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    # The tree is as deep as the longest path that the filter names, which parsing has bounded.
    kept: dict[str, Any] = {}
    for name, branch in tree.items():
        if name not in source:
            continue
        value = source[name]
        if branch is None:
            kept[name] = value
        elif isinstance(value, Mapping) and (inner := _projected(value, branch)):
            kept[name] = inner
    return kept

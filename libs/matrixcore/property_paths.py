"""Dot-separated paths to the properties of an event. Spec: Appendices §Dot-separated property paths."""

from collections.abc import Mapping
from typing import Any, Final

ABSENT: Final = object()  # unlike None, which is a value that a property may have

PropertyPath = tuple[str, ...]


def parse_property_path(path: str) -> PropertyPath:
    r"""Split at dots; `\.` and `\\` stand for a dot and a backslash inside a name, other escapes for themselves."""
    if "\\" not in path:
        return tuple(path.split("."))
    names: list[str] = []
    name: list[str] = []
    characters = iter(path)
    for character in characters:
        if character == ".":
            names.append("".join(name))
            name = []
        elif character == "\\":
            following = next(characters, "")
            name.append(following if following in (".", "\\") and following else "\\" + following)
        else:
            name.append(character)
    names.append("".join(name))
    return tuple(names)


def find_property(source: Mapping[str, Any], path: PropertyPath) -> Any:
    """The value at the path, or ABSENT where a name is missing or leads through something that is no object."""
    value: Any = source
    for name in path:
        if not isinstance(value, Mapping):
            return ABSENT
        value = value.get(name, ABSENT)
        if value is ABSENT:
            return ABSENT
    return value

"""Finding the route of a request, at a cost that does not grow with the number of routes.

A tree over the segments of the path replaces the sequential search through one regular
expression for each route. Segments are split first and decoded afterwards, so that an encoded
slash is part of its segment: event IDs of room version 3, aliases and state keys may have one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from starlette.routing import Route

_PARAMETER = re.compile(r"\{([A-Za-z_]\w*)(?::(\w+))?\}")
_UNUSUAL = re.compile(rb"%(?![1-7][0-9A-Fa-f]|0[1-9A-Fa-f])")  # NUL, not ASCII, or no escape at all
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class InvalidPath(ValueError):
    """The path or query is wrongly encoded, or has a NUL."""


class MatchedRoute(NamedTuple):
    """A route with its parameters, decoded."""

    route: Route
    path_params: dict[str, str]


@dataclass(frozen=True, slots=True)
class WrongMethod:
    """The path is known, but not with this method."""

    allowed: frozenset[str]


@dataclass(slots=True)
class _Target:
    route: Route
    names: tuple[str, ...]


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    targets: dict[str, _Target] = field(default_factory=dict)  # by method, for a path that ends here
    tails: dict[str, _Target] = field(default_factory=dict)  # by method, for {name:path}


class RouteIndex:
    """The routes of an application. A literal segment goes before a parameter, where both fit."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        self._fixed: dict[tuple[bytes, str], Route] = {}  # paths without parameters, which need no search
        for route in routes:
            self._add(route)

    def find(self, raw_path: bytes, method: str) -> MatchedRoute | WrongMethod | None:
        """The route for a path as it came.

        Raises:
            InvalidPath
        """
        route = self._fixed.get((raw_path, method))
        if route is not None:
            return MatchedRoute(route, {})
        allowed: set[str] = set()
        found = _search(self._root, split_path(raw_path.partition(b"?")[0]), 0, method, (), allowed)
        if found is not None:
            target, values = found
            return MatchedRoute(target.route, dict(zip(target.names, values, strict=True)))
        return WrongMethod(frozenset(allowed)) if allowed else None

    def _add(self, route: Route) -> None:
        node = self._root
        names: list[str] = []
        segments = route.path.split("/")[1:]
        for number, segment in enumerate(segments):
            parameter = _PARAMETER.fullmatch(segment)
            if parameter is None:
                if "{" in segment:
                    raise ValueError(f"{route.path}: a parameter must be a whole segment")
                node = node.literals.setdefault(segment, _Node())
                continue
            names.append(parameter[1])
            if parameter[2] == "path":
                if number != len(segments) - 1:
                    raise ValueError(f"{route.path}: a path parameter must be the last")
                _put(node.tails, route, tuple(names))
                return
            if parameter[2] not in (None, "str"):
                raise ValueError(f"{route.path}: parameters are text; parse {parameter[1]} in the handler")
            if node.parameter is None:
                node.parameter = _Node()
            node = node.parameter
        _put(node.targets, route, tuple(names))
        if not names:
            for method in node.targets:
                self._fixed[route.path.encode("ascii"), method] = node.targets[method].route


def _put(targets: dict[str, _Target], route: Route, names: tuple[str, ...]) -> None:
    methods = set(route.methods or ("GET",))
    if "GET" in methods:
        methods.add("HEAD")
    for method in methods:
        if method in targets:
            raise ValueError(f"{method} {route.path} has two routes")
        targets[method] = _Target(route, names)


def _search(
    node: _Node, segments: Sequence[str], number: int, method: str, values: tuple[str, ...], allowed: set[str]
) -> tuple[_Target, tuple[str, ...]] | None:
    if number == len(segments):
        target = node.targets.get(method)
        if target is None:
            allowed.update(node.targets)
            return None
        return target, values
    segment = segments[number]
    literal = node.literals.get(segment)
    if literal is not None:
        found = _search(literal, segments, number + 1, method, values, allowed)
        if found is not None:
            return found
    if node.parameter is not None and segment:
        found = _search(node.parameter, segments, number + 1, method, (*values, segment), allowed)
        if found is not None:
            return found
    if node.tails:
        target = node.tails.get(method)
        if target is not None:
            return target, (*values, "/".join(segments[number:]))
        allowed.update(node.tails)
    return None


def split_path(raw_path: bytes) -> list[str]:
    """The decoded segments after the first slash.

    Raises:
        InvalidPath
    """
    if b"%" not in raw_path:
        try:
            text = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidPath("the path has bytes outside ASCII") from None
        if "\0" in text:
            raise InvalidPath("the path has a NUL")
        return text.split("/")[1:]
    return [_decode(segment, "path") for segment in raw_path.split(b"/")[1:]]


def check_query(query: bytes) -> None:
    """Raise InvalidPath if a query string is wrongly encoded or has a NUL."""
    # Most queries escape ASCII alone (a filter in JSON): for them two searches say it all.
    if (b"%" in query and _UNUSUAL.search(query)) or not query.isascii() or b"\0" in query:
        _decode(query, "query")


def _decode(raw: bytes, what: str) -> str:
    try:
        if b"%" not in raw:
            text = raw.decode("utf-8")
        elif _BAD_ESCAPE.search(raw):
            raise InvalidPath(f"the {what} has a % without two hexadecimal digits")
        else:
            text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidPath(f"the {what} is not UTF-8") from None
    if "\0" in text:
        raise InvalidPath(f"the {what} has a NUL")
    return text

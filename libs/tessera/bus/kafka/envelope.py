"""What travels beside a record's bytes: the version of their format and the trace that they belong to."""

from collections.abc import Iterable, Sequence

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Headers = list[tuple[str, bytes]]

VERSION = 1
_VERSION_HEADER = ("v", str(VERSION).encode())
_PROPAGATOR = TraceContextTextMapPropagator()


class UnknownVersion(Exception):
    """Made by a newer process."""


class Malformed(Exception):
    """Nothing that we ever wrote."""


def make_headers() -> Headers:
    """The headers of a record made in the current span, if there is one."""
    if not trace.get_current_span().get_span_context().is_valid:
        return [_VERSION_HEADER]
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return [_VERSION_HEADER, *((name, value.encode()) for name, value in carrier.items())]


def check_version(headers: Sequence[tuple[str, bytes]]) -> None:
    """Return if the record is of a format that is known here.

    Raises:
        UnknownVersion, Malformed: it is not.
    """
    version = _find("v", headers)
    if version is None or not version.isdigit():
        raise Malformed("a record without a version")
    if int(version) != VERSION:
        raise UnknownVersion(version.decode())


def traceparent_of(headers: Sequence[tuple[str, bytes]]) -> str | None:
    """The span that made the record."""
    value = _find("traceparent", headers)
    return None if value is None else value.decode("ascii", "replace")


def _find(name: str, headers: Iterable[tuple[str, bytes]]) -> bytes | None:
    return next((value for key, value in headers if key == name), None)

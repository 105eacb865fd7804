"""What travels beside a record's bytes: the version of their format, and the trace that follows them.

The trace is in the bytes too; in the headers other tools find it.
"""

from collections.abc import Sequence

Headers = list[tuple[str, bytes]]

VERSION = 1
_VERSION_HEADER = ("v", str(VERSION).encode())


class UnknownVersion(Exception):
    """Made by a newer process."""


class Malformed(Exception):
    """Nothing that we ever wrote."""


def make_headers(traceparent: str) -> Headers:
    """The headers of a record of today's format; `traceparent` may be empty."""
    return [_VERSION_HEADER, ("traceparent", traceparent.encode())] if traceparent else [_VERSION_HEADER]


def check_version(headers: Sequence[tuple[str, bytes]]) -> None:
    """Return if the record is of a format that is known here.

    Raises:
        UnknownVersion, Malformed: it is not.
    """
    version = next((value for name, value in headers if name == "v"), None)
    if version is None or not version.isdigit():
        raise Malformed("a record without a version")
    if int(version) != VERSION:
        raise UnknownVersion(version.decode())

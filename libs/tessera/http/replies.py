"""JSON answers, made with as little work as the protocol allows."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

JSON_TYPE = (b"content-type", b"application/json")


class JsonReply(Response):
    """A response whose body is JSON bytes already; builds its headers without Starlette's detours."""

    media_type = "application/json"

    def __init__(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [JSON_TYPE, (b"content-length", b"%d" % len(body))]
        if headers:
            self.raw_headers += [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
            ]

    @property
    def is_plain(self) -> bool:
        """Whether its type and length are all that its head says."""
        return len(self.raw_headers) == 2


def json_reply(value: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a value that orjson can write; `orjson.Fragment`s are spliced in as they are."""
    return JsonReply(orjson.dumps(value), status, headers)


def json_bytes_reply(body: bytes, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with bytes that are JSON already."""
    return JsonReply(body, status, headers)

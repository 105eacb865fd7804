"""The errors that clients and servers are told, and the one place that renders them.

Spec: C-S API §Standard error response, §Common error codes, §Other error codes.
"""

from collections.abc import Mapping

from starlette.responses import Response

from tessera.http.replies import json_reply


class MatrixError(Exception):
    """An answer other than success.

    Args:
        message: `error`, for people. Never a token, a password or a message's content.
        errcode, status: the class's own unless given.
        fields: further fields of the body.
        headers: further headers of the answer.

    Attributes:
        body: the whole JSON object of the answer; a subclass may replace it.
    """

    errcode = "M_UNKNOWN"
    status = 400

    def __init__(
        self,
        message: str = "",
        *,
        errcode: str | None = None,
        status: int | None = None,
        fields: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if errcode is not None:
            self.errcode = errcode
        if status is not None:
            self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, object] = {"errcode": self.errcode, "error": message, **(fields or {})}


class BadJson(MatrixError):
    """JSON, but with missing keys or wrong values; the message names the field."""

    errcode = "M_BAD_JSON"


class NotJson(MatrixError):
    """No JSON at all."""

    errcode = "M_NOT_JSON"


class InvalidParam(MatrixError):
    """A parameter with a wrong value; the message names it."""

    errcode = "M_INVALID_PARAM"


class MissingParam(MatrixError):
    """A required parameter is missing; the message names it."""

    errcode = "M_MISSING_PARAM"


class InvalidUsername(MatrixError):
    """Not a valid user ID to register."""

    errcode = "M_INVALID_USERNAME"


class UserInUse(MatrixError):
    """The user ID is taken."""

    errcode = "M_USER_IN_USE"

    def __init__(self, message: str = "The user name is taken") -> None:
        super().__init__(message)


class Exclusive(MatrixError):
    """The name is reserved by an application service."""

    errcode = "M_EXCLUSIVE"


class UnsupportedRoomVersion(MatrixError):
    """A room of this version cannot be made here."""

    errcode = "M_UNSUPPORTED_ROOM_VERSION"


class Forbidden(MatrixError):
    """The requester may not do this."""

    errcode = "M_FORBIDDEN"
    status = 403


class GuestAccessForbidden(MatrixError):
    """Guests may not do this."""

    errcode = "M_GUEST_ACCESS_FORBIDDEN"
    status = 403

    def __init__(self, message: str = "Guests may not do this") -> None:
        super().__init__(message)


class UserSuspended(MatrixError):
    """The account is suspended. Spec: C-S API §Account suspension."""

    errcode = "M_USER_SUSPENDED"
    status = 403

    def __init__(self, message: str = "The account is suspended") -> None:
        super().__init__(message)


class NotFound(MatrixError):
    """There is no such thing, or the requester may not know of it."""

    errcode = "M_NOT_FOUND"
    status = 404

    def __init__(self, message: str = "Not found", *, fields: Mapping[str, object] | None = None) -> None:
        super().__init__(message, fields=fields)


class Unrecognized(MatrixError):
    """No such endpoint (404), or not with this method (405)."""

    errcode = "M_UNRECOGNIZED"
    status = 404

    def __init__(self, message: str = "Unrecognized request", *, status: int = 404) -> None:
        super().__init__(message, status=status)


class TooLarge(MatrixError):
    """The request or what it would make is too large."""

    errcode = "M_TOO_LARGE"
    status = 413


class MissingToken(MatrixError):
    """The request has no access token."""

    errcode = "M_MISSING_TOKEN"
    status = 401

    def __init__(self, message: str = "Missing access token") -> None:
        super().__init__(message)


class UnknownToken(MatrixError):
    """The token is unknown, revoked or expired.

    `soft_logout` tells the client to keep its keys and log in again. Spec: C-S API §Soft logout.
    """

    errcode = "M_UNKNOWN_TOKEN"
    status = 401

    def __init__(self, message: str = "Unknown access token", *, soft_logout: bool = False) -> None:
        super().__init__(message, fields={"soft_logout": soft_logout})


class UserLocked(MatrixError):
    """The account is locked. Spec: C-S API §Account locking."""

    errcode = "M_USER_LOCKED"
    status = 401

    def __init__(self, message: str = "The account is locked") -> None:
        super().__init__(message, fields={"soft_logout": True})


class LimitExceeded(MatrixError):
    """Too many requests. Spec: C-S API §Rate limiting.

    Args:
        retry_after_ms: when it makes sense to try again.
    """

    errcode = "M_LIMIT_EXCEEDED"
    status = 429

    def __init__(self, retry_after_ms: int, message: str = "Too many requests") -> None:
        super().__init__(
            message,
            fields={"retry_after_ms": retry_after_ms},
            headers={"Retry-After": _whole_seconds(retry_after_ms)},
        )
        self.retry_after_ms = retry_after_ms


class Unavailable(MatrixError):
    """A part that the request needs does not answer; nothing was done, and nothing will be. Status 503."""

    errcode = "M_UNKNOWN"
    status = 503

    def __init__(self, message: str = "Temporarily unavailable", *, retry_after_ms: int = 1_000) -> None:
        super().__init__(
            message,
            fields={"retry_after_ms": retry_after_ms},
            headers={"Retry-After": _whole_seconds(retry_after_ms)},
        )
        self.retry_after_ms = retry_after_ms


def error_reply(error: MatrixError) -> Response:
    """The answer for an error."""
    return json_reply(error.body, error.status, headers=error.headers)


def _whole_seconds(milliseconds: int) -> str:
    return str(max(1, -(-milliseconds // 1000)))

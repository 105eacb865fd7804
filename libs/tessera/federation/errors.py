"""What can go wrong between servers."""


class PeerError(Exception):
    """A peer could not be asked, or its answer is of no use."""


class PeerUnreachable(PeerError):
    """Nothing that could be taken for an answer: no address, no connection, no TLS, not in time."""


class PeerDenied(PeerUnreachable):
    """This server does not talk with that one: federation is off, or the operator does not want it."""


class PeerRefused(PeerError):
    """The peer answered, and not with success.

    Attributes:
        status: of HTTP.
        errcode, message: as the peer has them; "M_UNKNOWN" and "" where it has none.
        retry_after_ms: when the peer wants to be asked again, if it says so.
    """

    def __init__(self, status: int, errcode: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(f"{status} {errcode}: {message}")
        self.status = status
        self.errcode = errcode
        self.message = message
        self.retry_after_ms = retry_after_ms


class PeerAnsweredBadly(PeerError):
    """A success that is too long, no JSON, or breaks off."""


class KeyNotFound(Exception):
    """A key that signed something cannot be had, or was not valid then: the signature proves nothing."""


class BadSignature(Exception):
    """The signature is wrong, or not there."""

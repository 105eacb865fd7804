"""The Authorization header of requests between servers.

Spec: S-S API §Request Authentication; RFC 9110 §11.4.
"""

import re
from dataclasses import dataclass

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from matrixcore.signing import ALGORITHM

MAX_HEADER_LENGTH = 4_096
_SCHEME = re.compile(r"x-matrix[ \t]+", re.IGNORECASE)
# Colons may stand in values without quotes, as older servers have them; so may what base64 consists of.
_PARAMETER = re.compile(
    r"[ \t]*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*"
    r"(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<token>[!#$%&'*+.^_`|~0-9A-Za-z:/=\[\]-]*))[ \t]*(?:,|$)"
)


class InvalidAuthorization(ValueError):
    """No X-Matrix authorization, or one that lacks something."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """What the header says.

    Attributes:
        destination: None from servers older than the parameter.
    """

    origin: ServerName
    destination: str | None
    key_id: str
    signature: str


def is_x_matrix(header: str) -> bool:
    """Whether the header has this scheme."""
    return _SCHEME.match(header) is not None


def parse_authorization(header: str) -> Authorization:
    """Take a header apart.

    Raises:
        InvalidAuthorization
    """
    scheme = _SCHEME.match(header)
    if scheme is None or len(header) > MAX_HEADER_LENGTH:
        raise InvalidAuthorization("not of the scheme X-Matrix")
    given: dict[str, str] = {}
    at = scheme.end()
    while at < len(header):
        parameter = _PARAMETER.match(header, at)
        if parameter is None:
            raise InvalidAuthorization("not a list of parameters")
        quoted = parameter["quoted"]
        value = parameter["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        name = parameter["name"].lower()
        if name in given:
            raise InvalidAuthorization(f"{name} stands there twice")
        given[name] = value
        at = parameter.end()
    try:
        origin = parse_server_name(given.get("origin"))
    except InvalidIdentifier as error:
        raise InvalidAuthorization(f"origin: {error}") from None
    key_id, signature = given.get("key", ""), given.get("sig") or given.get("signature") or ""
    if not key_id.startswith(ALGORITHM + ":"):
        raise InvalidAuthorization("key is not of an algorithm that is known")
    if not signature:
        raise InvalidAuthorization("sig is missing")
    return Authorization(origin, given.get("destination"), key_id, signature)

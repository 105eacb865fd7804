"""Addresses of people as they are compared, and which may be used here.

Spec: Appendices §3PID Types.
"""

import re
from collections.abc import Mapping
from typing import Any

from tessera.config import Settings
from tessera.http.errors import BadJson, InvalidParam, MatrixError, MissingParam

MAX_ADDRESS_LENGTH = 500
EMAIL_MEDIUM = "email"
MSISDN_MEDIUM = "msisdn"

_SECRET = re.compile(r"[0-9a-zA-Z.=_-]{1,255}")
_EMAIL = re.compile(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+")


def canonical_email(address: str) -> str:
    """An e-mail address in the form that is stored: case-folded.

    Raises:
        InvalidParam: it is none.
    """
    folded = address.strip().casefold()
    if len(folded) > MAX_ADDRESS_LENGTH or not folded.isprintable() or _EMAIL.fullmatch(folded) is None:
        raise InvalidParam("That is no e-mail address")
    return folded


def canonical_address(medium: str, address: str) -> str:
    """An address of any medium as it is stored. Raises InvalidParam."""
    if medium == EMAIL_MEDIUM:
        return canonical_email(address)
    if medium == MSISDN_MEDIUM:
        if not (address.isascii() and address.isdigit() and len(address) <= 30):
            raise InvalidParam("A telephone number has digits only, the country's code first")
        return address
    raise InvalidParam("medium must be email or msisdn")


def client_secret_of(body: Mapping[str, Any]) -> str:
    """The secret of a validation, as its client chose it. Raises MissingParam or InvalidParam."""
    secret = required_text(body, "client_secret")
    if _SECRET.fullmatch(secret) is None:
        raise InvalidParam("client_secret must be 1 to 255 letters of 0-9, a-z, A-Z and .=_-")
    return secret


def require_allowed(settings: Settings, medium: str, address: str) -> None:
    """Raises MatrixError (M_THREEPID_DENIED) for an address that the operator does not want."""
    rules = settings.allowed_local_3pids
    if rules and not any(rule.medium == medium and re.match(rule.pattern, address) for rule in rules):
        raise MatrixError("This address may not be used here", errcode="M_THREEPID_DENIED", status=403)


def required_text(body: Mapping[str, Any], name: str) -> str:
    """A string that must be there. Raises MissingParam or BadJson."""
    value = body.get(name)
    if value is None:
        raise MissingParam(f"{name} is missing")
    if not isinstance(value, str):
        raise BadJson(f"{name} must be a string")
    return value

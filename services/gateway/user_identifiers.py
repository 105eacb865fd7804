"""Whom a login means. Spec: C-S API §Identifier types."""

from collections.abc import Mapping
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_user_id, user_id_of
from services.gateway.threepid_addresses import MSISDN_MEDIUM, canonical_address
from tessera.http.errors import BadJson, InvalidParam, MissingParam
from tessera.storage import threepids
from tessera.storage.database import Database

_PHONE_PUNCTUATION = str.maketrans("", "", " -().+")


async def find_login_user(accounts: Database, body: Mapping[str, Any], server_name: ServerName) -> UserId | None:
    """The user named by `identifier` (an ID or localpart, an address) or by the older fields.

    Localparts are lower case in this server, whatever people type.

    Returns:
        None for an address that is no account's; for an ID the ID, whether or not there is such a user.

    Raises:
        MissingParam, BadJson, InvalidParam: no user is named, or none that there can be.
    """
    identifier = body.get("identifier")
    if identifier is None:
        identifier = {"type": "m.id.user", "user": body.get("user")}
        if body.get("medium") is not None:
            identifier = {"type": "m.id.thirdparty", "medium": body["medium"], "address": body.get("address")}
    if not isinstance(identifier, Mapping):
        raise BadJson("identifier must be an object")
    kind = identifier.get("type")
    if kind == "m.id.thirdparty" or (kind is None and "medium" in identifier):
        return await _find_owner(accounts, _text(identifier, "medium"), _text(identifier, "address"))
    if kind == "m.id.phone":
        # `number` is what the field was called before r0.4. The country's code must be part of it.
        number = _text(identifier, "phone" if "phone" in identifier else "number")
        return await _find_owner(accounts, MSISDN_MEDIUM, number.translate(_PHONE_PUNCTUATION))
    if kind != "m.id.user":
        raise InvalidParam("identifier.type is unknown")
    return _parse_name(_text(identifier, "user"), server_name)


async def _find_owner(accounts: Database, medium: str, address: str) -> UserId | None:
    async with accounts.reading() as tx:
        return await threepids.find_owner(tx, medium, canonical_address(medium, address))


def _parse_name(name: str, server_name: ServerName) -> UserId:
    try:
        if name.startswith("@"):
            localpart, _, domain = name[1:].partition(":")
            return parse_user_id(f"@{localpart.lower()}:{domain}")
        return user_id_of(name.lower(), server_name)
    except InvalidIdentifier as error:
        raise InvalidParam(f"identifier.user: {error}") from error


def _text(identifier: Mapping[str, Any], name: str) -> str:
    value = identifier.get(name)
    if value is None:
        raise MissingParam(f"identifier.{name} is missing")
    if not isinstance(value, str):
        raise BadJson(f"identifier.{name} must be a string")
    return value

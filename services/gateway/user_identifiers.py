"""Whom a login means. Spec: C-S API §Identifier types."""

from collections.abc import Mapping
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_user_id, user_id_of
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MissingParam


def login_user_id(body: Mapping[str, Any], server_name: ServerName) -> UserId:
    """The user named by `identifier` (m.id.user, full ID or localpart) or by the older field `user`.

    Localparts are lower case in this server, whatever people type.

    Raises:
        MissingParam, BadJson, InvalidParam: no user is named, or none that there can be.
        Forbidden: a third-party identifier, of which none is known.
    """
    identifier = body.get("identifier")
    if identifier is None:
        if body.get("medium") is not None:
            raise Forbidden("Third-party identifiers are not known to this server")
        identifier = {"type": "m.id.user", "user": body.get("user")}
    if not isinstance(identifier, Mapping):
        raise BadJson("identifier must be an object")
    kind = identifier.get("type")
    if kind in ("m.id.thirdparty", "m.id.phone"):
        raise Forbidden("Third-party identifiers are not known to this server")
    if kind != "m.id.user":
        raise InvalidParam("identifier.type is unknown")
    name = identifier.get("user")
    if name is None:
        raise MissingParam("identifier.user is missing")
    if not isinstance(name, str):
        raise BadJson("identifier.user must be a string")
    try:
        if name.startswith("@"):
            localpart, _, domain = name[1:].partition(":")
            return parse_user_id(f"@{localpart.lower()}:{domain}")
        return user_id_of(name.lower(), server_name)
    except InvalidIdentifier as error:
        raise InvalidParam(f"identifier.user: {error}") from error

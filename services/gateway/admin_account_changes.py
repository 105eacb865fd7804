"""What an administrator changes of an account, all checked before anything is done. Spec: none; Synapse's admin API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, UserId, parse_user_id, server_of
from services.gateway.account_management import deactivate, set_password
from services.gateway.address_validation import in_use
from services.gateway.dependencies import GatewayDeps
from services.gateway.moderation import get_local_user, mark_user
from services.gateway.profile import change_field, check_value
from services.gateway.registration import add_account, check_new_password
from services.gateway.sso_mapping import MAX_EXTERNAL_ID_LENGTH
from services.gateway.threepid_addresses import canonical_address, required_text
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MatrixError
from tessera.storage import account_listing, external_identities, threepids, users
from tessera.storage.external_identities import ExternalIdentity

USER_TYPES = (None, "support", "bot")
_PROFILE = ("displayname", "avatar_url")


@dataclass(frozen=True, slots=True)
class AccountChanges:
    """The fields of a body; None where it says nothing.

    Attributes:
        profile: displayname and avatar_url as they are to be.
        user_type: a tuple of the type, which may be None.
        addresses: (medium, address): all that the account is to have.
        identities: all by which the user can sign in at providers.
    """

    password: str | None = None
    logout_devices: bool = True
    is_admin: bool | None = None
    deactivated: bool | None = None
    locked: bool | None = None
    user_type: tuple[str | None] | None = None
    profile: Mapping[str, Any] = field(default_factory=dict)
    addresses: Sequence[tuple[str, str]] | None = None
    identities: Sequence[ExternalIdentity] | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "AccountChanges":
        """Raises BadJson or InvalidParam."""
        password = body.get("password")
        if password is not None and not isinstance(password, str):
            raise BadJson("password must be a string")
        if body.get("user_type") not in USER_TYPES:
            raise InvalidParam("user_type must be support, bot or null")
        return cls(
            None if password is None else check_new_password(password),
            _flag(body, "logout_devices") is not False,
            _flag(body, "admin"),
            _flag(body, "deactivated"),
            _flag(body, "locked"),
            (body["user_type"],) if "user_type" in body else None,
            {name: check_value(name, body[name] or "") for name in _PROFILE if name in body},
            _addresses_of(body),
            _identities_of(body),
        )


async def find_or_add_account(gateway: GatewayDeps, user_id: str, changes: AccountChanges) -> tuple[UserId, bool]:
    """The user of an ID, with whether the account was made now.

    Raises:
        InvalidParam: no ID of a user of this server.
    """
    try:
        target = parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error
    if server_of(target) != gateway.server_name:
        raise InvalidParam("The user does not belong to this server")
    async with gateway.accounts.reading() as tx:
        if await users.user_exists(tx, target):
            return target, False
    password_hash = None if changes.password is None else await gateway.passwords.hash(changes.password)
    await add_account(gateway, target, password_hash, is_admin=bool(changes.is_admin))
    return target, True


async def change_account(gateway: GatewayDeps, user_id: UserId, changes: AccountChanges, *, by: UserId) -> None:
    """Make the changes; repeatable.

    Raises:
        InvalidParam: a closed account cannot be opened again.
        Forbidden: administrators neither close, lock nor demote themselves.
        MatrixError: M_THREEPID_IN_USE, 409 for somebody else's identity.
    """
    if by == user_id and (changes.deactivated or changes.locked or changes.is_admin is False):
        raise Forbidden("You cannot do this to your own account")
    user = await get_local_user(gateway, user_id)
    if user.deactivated and (changes.deactivated is False or changes.password is not None):
        raise InvalidParam("A closed account cannot be opened again")
    if changes.addresses is not None:
        await _set_addresses(gateway, user_id, changes.addresses)
    if changes.identities is not None:
        async with gateway.accounts.transaction() as tx:
            if not await external_identities.set_identities(tx, user_id, changes.identities):
                raise MatrixError("An external ID is somebody else's", errcode="M_UNKNOWN", status=409)
    async with gateway.accounts.transaction() as tx:
        if changes.is_admin is not None:
            await users.set_admin(tx, user_id, changes.is_admin)
        if changes.user_type is not None:
            await account_listing.set_user_type(tx, user_id, changes.user_type[0])
    for name, value in changes.profile.items():
        await change_field(gateway, user_id, name, value, by_operator=True)
    if changes.password is not None:
        await set_password(gateway, user_id, changes.password, keep_device=None, logout_devices=changes.logout_devices)
    if changes.locked is not None or changes.is_admin is not None:
        # All processes forget what they know of the user's tokens.
        await mark_user(gateway, user_id, "locked", user.locked if changes.locked is None else changes.locked)
    if changes.deactivated:
        await deactivate(gateway, user_id, erase=False)


async def _set_addresses(gateway: GatewayDeps, user_id: UserId, addresses: Sequence[tuple[str, str]]) -> None:
    now_ms = gateway.clock.now_ms()
    async with gateway.accounts.transaction() as tx:
        for one in await threepids.list_threepids(tx, user_id):
            if (one.medium, one.address) not in addresses:
                await threepids.delete_threepid(tx, user_id, one.medium, one.address)
        for medium, address in addresses:
            if not await threepids.add_threepid(tx, user_id, medium, address, validated_ts=now_ms, now_ms=now_ms):
                raise in_use()


def _addresses_of(body: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    given = body.get("threepids")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > 100 or not all(isinstance(one, Mapping) for one in given):
        raise BadJson("threepids must be a list of at most 100 objects")
    media = [(required_text(one, "medium"), required_text(one, "address")) for one in given]
    return [(medium, canonical_address(medium, address)) for medium, address in media]


def _identities_of(body: Mapping[str, Any]) -> list[ExternalIdentity] | None:
    given = body.get("external_ids")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > 100 or not all(isinstance(one, Mapping) for one in given):
        raise BadJson("external_ids must be a list of at most 100 objects")
    pairs = [(required_text(one, "auth_provider"), required_text(one, "external_id")) for one in given]
    if not all(0 < len(text) <= MAX_EXTERNAL_ID_LENGTH and text.isprintable() for pair in pairs for text in pair):
        raise InvalidParam(f"auth_provider and external_id have 1 to {MAX_EXTERNAL_ID_LENGTH} printable characters")
    return [ExternalIdentity(*pair) for pair in pairs]


def _flag(body: Mapping[str, Any], name: str) -> bool | None:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadJson(f"{name} must be a boolean")
    return value

"""Whose account somebody has who signs in by a provider. The first time it is made, or found by its name."""

from typing import Any

import structlog

from matrixcore.identifiers import InvalidIdentifier, UserId, user_id_of
from services.gateway.dependencies import GatewayDeps
from services.gateway.profile import change_field
from services.gateway.sso_mapping import Person, UnfitClaims, meets, read_person
from services.gateway.threepid_addresses import EMAIL_MEDIUM, canonical_address, require_allowed
from tessera.config.single_sign_on import OidcProvider
from tessera.http.errors import MatrixError
from tessera.storage import external_identities, profiles, threepids, users
from tessera.storage.database import Transaction
from tessera.storage.external_identities import ExternalIdentity
from tessera.storage.users import User

log = structlog.get_logger(__name__)

MAX_NAMES = 100  # that are tried for a new account: the name, then with 1, 2, ...


class NoAccount(Exception):
    """Nobody is let in; the text is for people."""


class _CameSecond(Exception):
    """The same person signed in for the first time twice at once; the other one has an account now."""


async def find_account(gateway: GatewayDeps, provider: OidcProvider, claims: dict[str, Any]) -> UserId | None:
    """Whose account it is already; None if nobody's. For who proves something of an account that is there.

    Raises:
        NoAccount: the claims do not say who it is, or lack what is required.
    """
    person = _person(provider, claims)
    async with gateway.accounts.reading() as tx:
        return await external_identities.find_user(tx, ExternalIdentity(provider.auth_provider, person.external_id))


async def sign_in(gateway: GatewayDeps, provider: OidcProvider, claims: dict[str, Any]) -> UserId:
    """The account of whoever the claims speak of; a new one if need be.

    Raises:
        NoAccount: there is none and none is made, or it is closed or locked.
    """
    person = _person(provider, claims)
    identity = ExternalIdentity(provider.auth_provider, person.external_id)
    async with gateway.accounts.reading() as tx:
        user_id = await external_identities.find_user(tx, identity)
        known = user_id is not None
        if user_id is None and provider.allow_existing_users:
            user_id = await _find_named(tx, gateway, person)
        user = None if user_id is None else await users.find_user(tx, user_id)
    try:
        if user is None:
            return await _register(gateway, provider, person, identity)
        _check_open(user)
        if not known:
            await _link(gateway, user.user_id, identity)
    except _CameSecond:
        return await sign_in(gateway, provider, claims)
    if gateway.settings.sso.update_profile_information and person.display_name is not None:
        await _update_name(gateway, user.user_id, person.display_name)
    return user.user_id


def _person(provider: OidcProvider, claims: dict[str, Any]) -> Person:
    if not meets(claims, provider.attribute_requirements):
        raise NoAccount("Your account at the provider may not be used here.")
    try:
        return read_person(claims, provider.mapping)
    except UnfitClaims as error:
        raise NoAccount(str(error)) from error


def _check_open(user: User) -> None:
    if user.deactivated:
        raise NoAccount("Your account here was closed.")
    if user.locked:
        raise NoAccount("Your account here is locked. The server's administrators can unlock it.")


async def _find_named(tx: Transaction, gateway: GatewayDeps, person: Person) -> UserId | None:
    """The account of the person's name, unless it is a bridge's."""
    if person.localpart is None:
        return None
    try:
        user_id = user_id_of(person.localpart, gateway.server_name)
    except InvalidIdentifier:
        return None
    if gateway.claims.is_user_claimed(user_id):
        return None
    return user_id if await users.user_exists(tx, user_id) else None


async def _link(gateway: GatewayDeps, user_id: UserId, identity: ExternalIdentity) -> None:
    async with gateway.accounts.transaction() as tx:
        if not await external_identities.add_identity(tx, user_id, identity):
            raise _CameSecond
    log.info("identity linked", user_id=user_id, auth_provider=identity.auth_provider)


async def _register(gateway: GatewayDeps, provider: OidcProvider, person: Person, identity: ExternalIdentity) -> UserId:
    """Make the account, under the first of its names that is free.

    Raises:
        NoAccount, _CameSecond
    """
    if not provider.enable_registration:
        raise NoAccount("You have no account here, and none is made by signing in.")
    if person.localpart is None:
        raise NoAccount("The provider does not say what your name here is to be.")
    for user_id in await _free_names(gateway, person.localpart):
        async with gateway.accounts.transaction() as tx:
            made = await users.add_user(
                tx,
                user_id,
                password_hash=None,
                displayname=person.display_name or person.localpart,
                now_ms=gateway.clock.now_ms(),
            )
            if made:
                if not await external_identities.add_identity(tx, user_id, identity):
                    raise _CameSecond
                await _add_address(tx, gateway, user_id, person.email)
        if made:
            log.info("account made", user_id=user_id, auth_provider=identity.auth_provider)
            return user_id
    raise NoAccount("All names like yours are taken here.")


async def _free_names(gateway: GatewayDeps, localpart: str) -> list[UserId]:
    """The name, then with 1, 2, ...; those that nobody has and no application service claims. Raises NoAccount."""
    try:
        names = [user_id_of(f"{localpart}{number or ''}", gateway.server_name) for number in range(MAX_NAMES)]
    except InvalidIdentifier as error:
        raise NoAccount("The provider's name for you is too long.") from error
    async with gateway.accounts.reading() as tx:
        taken = await users.list_taken(tx, names)
    return [name for name in names if name not in taken and not gateway.claims.is_user_claimed(name)]


async def _add_address(tx: Transaction, gateway: GatewayDeps, user_id: UserId, email: str | None) -> None:
    """Add the address unless it is somebody else's, or none: the account is good without."""
    if email is None:
        return
    now_ms = gateway.clock.now_ms()
    try:
        address = canonical_address(EMAIL_MEDIUM, email)
        require_allowed(gateway.settings, EMAIL_MEDIUM, address)
    except MatrixError:
        return
    await threepids.add_threepid(tx, user_id, EMAIL_MEDIUM, address, validated_ts=now_ms, now_ms=now_ms)


async def _update_name(gateway: GatewayDeps, user_id: UserId, name: str) -> None:
    async with gateway.accounts.reading() as tx:
        found = (await profiles.list_profiles(tx, [user_id])).get(user_id)
    if found is not None and found.displayname != name:
        await change_field(gateway, user_id, "displayname", name, by_operator=True)

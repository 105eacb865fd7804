"""Addresses of people: what an account has, proofs of new ones, and what identity servers are told.

Spec: C-S API §Adding Account Administrative Contact Information.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import UserId
from services.gateway.address_validation import ADD, PASSWORD_RESET, REGISTER, in_use
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.identity_server import IdentityServer
from services.gateway.routing import ClientAddress, CurrentRequester, JsonObject, client_router
from services.gateway.threepid_addresses import canonical_address, client_secret_of, required_text
from services.gateway.uia import PASSWORD_FLOWS, UiaRequest
from tessera.http.errors import BadJson, Forbidden, MatrixError
from tessera.http.replies import json_reply
from tessera.storage import threepids

router = client_router()

SUPPORTED, NO_SUPPORT = "success", "no-support"


@router.get("/account/3pid")
async def get_account_3pids(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The addresses of the account."""
    async with gateway.accounts.reading() as tx:
        found = await threepids.list_threepids(tx, requester.user_id)
    shown = [
        {
            "medium": one.medium,
            "address": one.address,
            "validated_at": one.validated_ts,
            "added_at": one.added_ts,
        }
        for one in found
    ]
    return json_reply({"threepids": shown})


@router.post("/account/3pid")
async def post_3pids(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The older form of /account/3pid/bind."""
    credentials = body.get("three_pid_creds")
    if not isinstance(credentials, Mapping):
        raise BadJson("three_pid_creds must be an object")
    _require_changeable(gateway)
    await bind(gateway, requester.user_id, credentials)
    return json_reply({})


@router.post("/account/3pid/add")
async def add_3pid(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Add a proven address to the account after interactive authentication."""
    _require_changeable(gateway)
    session_id, secret = required_text(body, "sid"), client_secret_of(body)
    await gateway.uia.require(
        UiaRequest("add3PID", (requester.user_id, session_id), PASSWORD_FLOWS, requester.user_id), body.get("auth")
    )
    await add_proven(gateway, requester.user_id, session_id, secret)
    return json_reply({})


@router.post("/account/3pid/bind")
async def bind_3pid(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Have an identity server publish an address as the user's."""
    await bind(gateway, requester.user_id, body)
    return json_reply({})


@router.post("/account/3pid/delete")
async def delete_3pid_from_account(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Take an address from the account, and have identity servers forget it."""
    _require_changeable(gateway)
    medium, address, id_server = _address_of(body)
    result = await unbind(gateway, requester.user_id, medium, address, id_server)
    async with gateway.accounts.transaction() as tx:
        await threepids.delete_threepid(tx, requester.user_id, medium, address)
    return json_reply({"id_server_unbind_result": result})


@router.post("/account/3pid/unbind")
async def unbind_3pid_from_account(body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Have identity servers forget an address; the account keeps it."""
    medium, address, id_server = _address_of(body)
    result = await unbind(gateway, requester.user_id, medium, address, id_server)
    return json_reply({"id_server_unbind_result": result})


@router.post("/register/email/requestToken")
async def request_token_to_register_email(
    body: JsonObject, gateway: GatewayDep, client_address: ClientAddress
) -> Response:
    """Begin to prove an address for a registration."""
    _require_registration(gateway)
    return json_reply({"sid": await gateway.addresses.request_token(REGISTER, body, client_address)})


@router.post("/register/msisdn/requestToken")
async def request_token_to_register_msisdn(
    body: JsonObject, gateway: GatewayDep, client_address: ClientAddress
) -> Response:
    """Begin to prove a telephone number for a registration."""
    _require_registration(gateway)
    return json_reply(await gateway.telephones.request_token(body, client_address))


@router.post("/account/password/email/requestToken")
async def request_token_to_reset_password_email(
    body: JsonObject, gateway: GatewayDep, client_address: ClientAddress
) -> Response:
    """Begin to prove an address for a new password."""
    return json_reply({"sid": await gateway.addresses.request_token(PASSWORD_RESET, body, client_address)})


@router.post("/account/password/msisdn/requestToken")
async def request_token_to_reset_password_msisdn(
    body: JsonObject, gateway: GatewayDep, client_address: ClientAddress
) -> Response:
    """Begin to prove a telephone number for a new password."""
    return json_reply(await gateway.telephones.request_token(body, client_address))


@router.post("/account/3pid/email/requestToken")
async def request_token_to_3pid_email(body: JsonObject, gateway: GatewayDep, client_address: ClientAddress) -> Response:
    """Begin to prove an address that is to be added to an account."""
    _require_changeable(gateway)
    return json_reply({"sid": await gateway.addresses.request_token(ADD, body, client_address)})


@router.post("/account/3pid/msisdn/requestToken")
async def request_token_to_3pid_msisdn(
    body: JsonObject, gateway: GatewayDep, client_address: ClientAddress
) -> Response:
    """Begin to prove a telephone number that is to be added to an account."""
    _require_changeable(gateway)
    return json_reply(await gateway.telephones.request_token(body, client_address))


async def add_proven(gateway: GatewayDeps, user_id: UserId, session_id: str, client_secret: str) -> None:
    """Add the address that a validation has proven; the proof is used up.

    Raises:
        MatrixError: M_THREEPID_AUTH_FAILED, M_THREEPID_IN_USE.
    """
    proof = await gateway.addresses.find_proof(ADD, session_id, client_secret)
    if proof is None:
        proof = await gateway.telephones.find_proof(session_id, client_secret)
    if proof is None:
        raise MatrixError("The address is not proven yet", errcode="M_THREEPID_AUTH_FAILED", status=400)
    async with gateway.accounts.transaction() as tx:
        if not await threepids.add_threepid(
            tx,
            user_id,
            proof.medium,
            proof.address,
            validated_ts=proof.validated_ts,
            now_ms=gateway.clock.now_ms(),
        ):
            raise in_use()
        await threepids.end_validation(tx, session_id)


async def bind(gateway: GatewayDeps, user_id: UserId, body: Mapping[str, Any]) -> None:
    """Bind an address that an identity server has proven, and remember where it is bound.

    Raises:
        MatrixError: what the identity server says.
    """
    secret, session_id = client_secret_of(body), required_text(body, "sid")
    server = IdentityServer.named(
        gateway.calls.guarded, required_text(body, "id_server"), required_text(body, "id_access_token")
    )
    gateway.limits.check("rc_3pid_validation", user_id)
    medium, address = await server.bind(session_id, secret, user_id)
    async with gateway.accounts.transaction() as tx:
        await threepids.add_binding(tx, user_id, medium, canonical_address(medium, address), server.name)


async def unbind(gateway: GatewayDeps, user_id: UserId, medium: str, address: str, id_server: str | None) -> str:
    """Have the identity server named, or those that the address was bound at, forget it: what is told of it.

    Raises:
        MatrixError: an identity server does not answer (502).
    """
    async with gateway.accounts.reading() as tx:
        known = await threepids.list_bindings(tx, user_id, medium, address)
    names = known if id_server is None else [id_server]
    result = NO_SUPPORT if not names else SUPPORTED
    for name in names:
        server = IdentityServer.named(gateway.calls.guarded, name)
        done = await server.unbind(medium, address, user_id, origin=gateway.server_name, key=gateway.signing_key)
        result = result if done else NO_SUPPORT
        async with gateway.accounts.transaction() as tx:
            await threepids.delete_binding(tx, user_id, medium, address, server.name)
    return result


def _address_of(body: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """medium, address and id_server of a request to delete or unbind."""
    medium = required_text(body, "medium")
    address = canonical_address(medium, required_text(body, "address"))
    id_server = body.get("id_server")
    if id_server is not None and not isinstance(id_server, str):
        raise BadJson("id_server must be a string")
    return medium, address, id_server


def _require_changeable(gateway: GatewayDeps) -> None:
    if not gateway.settings.enable_3pid_changes:
        raise Forbidden("Addresses of accounts are managed by the server's operator")


def _require_registration(gateway: GatewayDeps) -> None:
    if not gateway.settings.enable_registration:
        raise Forbidden("Registration has been disabled. Only a server administrator can create accounts.")

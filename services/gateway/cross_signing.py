"""Cross-signing keys and signatures: upload.

Spec: C-S API §Cross-signing.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import orjson
from starlette.responses import Response

from matrixcore.identifiers import UserId
from matrixcore.signing import signing_key_ids, verify_json
from services.gateway.dependencies import AccountsDep, FanoutDep, UiaDep
from services.gateway.key_checks import check_cross_signing_key, is_same_key, merge_signatures, public_key_bytes
from services.gateway.routing import CurrentRequester, JsonObject, Requester, client_router
from services.gateway.uia import OAUTH, OAUTH_FLOWS, PASSWORD_FLOWS, UiaRequest, UserInteractiveAuth
from tessera.fanout import Fanout
from tessera.http.errors import Forbidden, InvalidParam, MatrixError
from tessera.http.replies import json_reply
from tessera.storage import cross_signing, device_changes, device_keys, devices, oauth_clients
from tessera.storage.cross_signing import CrossSigningKey, KeySignature, Usage
from tessera.storage.database import Database, Transaction
from tessera.storage.device_changes import DeviceChange
from tessera.wakes import DeviceWake

USAGES: tuple[Usage, ...] = get_args(Usage)
# Each costs a verification of about 0.1 ms on the event loop.
MAX_SIGNED_OBJECTS = 200

Keys = Mapping[Usage, CrossSigningKey]
Confirm = Callable[[], Awaitable[None]]

router = client_router()


@router.post("/keys/device_signing/upload")
async def upload_cross_signing_keys(
    body: JsonObject, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep, uia: UiaDep
) -> Response:
    """Publish cross-signing keys; replacing them takes interactive authentication."""
    user_id = requester.user_id

    async def confirm() -> None:
        if requester.appservice_id is None:
            is_of_oauth, auth = await _is_of_oauth(accounts, uia, requester), body.get("auth")
            flows = OAUTH_FLOWS if is_of_oauth else PASSWORD_FLOWS
            request = UiaRequest("uploadCrossSigningKeys", (user_id, requester.device_id), flows, user_id)
            if is_of_oauth and auth is None:
                auth = await uia.resume(request)
            await uia.require(request, auth)

    await store_keys(accounts, fanout, user_id, body, confirm)
    return json_reply({})


@router.post("/keys/signatures/upload")
async def upload_cross_signing_signatures(
    body: JsonObject, requester: CurrentRequester, accounts: AccountsDep, fanout: FanoutDep
) -> Response:
    """Publish signatures on devices and master keys."""
    return json_reply({"failures": await store_signatures(accounts, fanout, requester.user_id, body)})


async def _is_of_oauth(accounts: Database, uia: UserInteractiveAuth, requester: Requester) -> bool:
    """Whether the session is one of the OAuth 2.0 API, whose clients know no passwords."""
    if OAUTH not in uia.stages:
        return False
    async with accounts.reading() as tx:
        return await oauth_clients.find_session_client(tx, requester.user_id, requester.device_id) is not None


async def store_keys(
    accounts: Database, fanout: Fanout, user_id: UserId, body: Mapping[str, Any], confirm: Confirm
) -> None:
    """Store a user's cross-signing keys.

    Args:
        confirm: the interactive authentication; awaited only when the account has a master key and the request
            brings anything that is not stored already. Raises when the client has still to do something.

    Raises:
        InvalidParam: a malformed key. MatrixError: M_MISSING_PARAM without any master key, M_INVALID_SIGNATURE.
        Forbidden: a key is also the ID of one of the user's devices.
    """
    given: dict[Usage, CrossSigningKey] = {
        usage: check_cross_signing_key(body[f"{usage}_key"], usage, user_id)
        for usage in USAGES
        if body.get(f"{usage}_key") is not None
    }
    confirmed = False
    while True:
        async with accounts.transaction() as tx:
            await cross_signing.lock_user(tx, user_id)
            stored = await cross_signing.find_keys(tx, user_id)
            check_signed_by_master(given, stored, user_id)
            news = [key for key in given.values() if not _is_stored(key, stored)]
            if not news:
                return
            if confirmed or "master" not in stored:
                position = await _replace_keys(tx, user_id, news, stored)
                break
        # Outside the transaction: the proof may take a password hash. What is stored may change meanwhile.
        await confirm()
        confirmed = True
    await fanout.publish_device_wake(DeviceWake(position, (user_id,)))


def check_signed_by_master(given: Keys, stored: Keys, user_id: UserId) -> None:
    """Self-signing and user-signing keys must be signed by the master key that comes with them, or the stored one.

    Raises:
        MatrixError: there is no master key (M_MISSING_PARAM), or a signature is missing or wrong.
    """
    master = given.get("master") or stored.get("master")
    if master is None:
        raise MatrixError("No master signing key is available", errcode="M_MISSING_PARAM", status=400)
    verifying = _verify_keys(master)
    for usage, key in given.items():
        if usage != "master" and not verify_json(orjson.loads(key.content), user_id, verifying):
            raise MatrixError(f"Invalid signature on {usage}_key", errcode="M_INVALID_SIGNATURE", status=400)


async def _replace_keys(tx: Transaction, user_id: UserId, news: list[CrossSigningKey], stored: Keys) -> int:
    """Store new keys and forget what the replaced ones signed; answers the position of the device change."""
    device_ids = {device.device_id for device in await devices.list_devices(tx, user_id)}
    if any(key.key_id in device_ids for key in news):
        raise Forbidden("Key ID in use")
    old_ids = [stored[key.usage].key_id for key in news if key.usage in stored]
    if old_ids:
        lost = await cross_signing.delete_signatures_of(tx, user_id, [f"ed25519:{key_id}" for key_id in old_ids])
        await cross_signing.delete_signatures_on(tx, user_id, old_ids)
        await _rewrite_devices(tx, user_id, [target for owner, target in lost if owner == user_id])
    await cross_signing.set_keys(tx, user_id, news)
    return await device_changes.add_changes(tx, [DeviceChange(user_id)])


def _is_stored(key: CrossSigningKey, stored: Keys) -> bool:
    present = stored.get(key.usage)
    return present is not None and is_same_key(orjson.loads(present.content), orjson.loads(key.content))


def _verify_keys(key: CrossSigningKey | None) -> dict[str, bytes]:
    """The key as `verify_json` takes it."""
    public_key = None if key is None else public_key_bytes(key.key_id)
    return {} if key is None or public_key is None else {f"ed25519:{key.key_id}": public_key}


@dataclass(slots=True)
class SignatureOutcome:
    """What became of an upload: signatures to store, and a failure for each object that has none."""

    accepted: list[KeySignature] = field(default_factory=list)
    failures: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)

    def refuse(self, user_id: str, key_id: str, errcode: str, error: str) -> None:
        """Report one object as failed."""
        self.failures.setdefault(user_id, {})[key_id] = {"errcode": errcode, "error": error}


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What a signature upload is checked against: the signer's own keys and devices, other users' master keys."""

    own: Keys
    devices: Mapping[str, bytes]
    masters: Mapping[UserId, CrossSigningKey]


async def store_signatures(
    accounts: Database, fanout: Fanout, user_id: UserId, body: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, str]]]:
    """Store signatures on the user's own devices, own master key and other users' master keys; answers the failures.

    Each is verified: own devices are signed by the self-signing key, the own master key by own devices, others'
    master keys by the user-signing key. Repeating a request changes nothing.
    """
    if sum(len(objects) for objects in body.values() if isinstance(objects, Mapping)) > MAX_SIGNED_OBJECTS:
        raise InvalidParam(f"more than {MAX_SIGNED_OBJECTS} signed objects in one request")
    async with accounts.transaction() as tx:
        await cross_signing.lock_user(tx, user_id)
        known = await _load_known(tx, user_id, body)
        outcome = check_signatures(user_id, body, known)
        if not outcome.accepted:
            return outcome.failures
        await cross_signing.add_signatures(tx, outcome.accepted)
        own = sorted({one.target_key_id for one in outcome.accepted if one.target_user_id == user_id})
        await _rewrite_devices(tx, user_id, [key_id for key_id in own if key_id in known.devices])
        master = known.own.get("master")
        if master is not None and master.key_id in own:
            signatures = await cross_signing.list_own_signatures(tx, user_id, [master.key_id])
            merged = merge_signatures(orjson.loads(master.content), user_id, signatures[master.key_id])
            await cross_signing.set_signed(tx, user_id, "master", merged)
        changes = [DeviceChange(user_id, key_id if key_id in known.devices else "") for key_id in own]
        others = sorted({one.target_user_id for one in outcome.accepted} - {user_id})
        changes += [DeviceChange(other, observer=user_id) for other in others]
        position = await device_changes.add_changes(tx, changes)
    changed = tuple(others) if not own else (user_id, *others)
    await fanout.publish_device_wake(DeviceWake(position, changed))
    return outcome.failures


def check_signatures(user_id: UserId, body: Mapping[str, Any], known: KnownKeys) -> SignatureOutcome:
    """Judge every signed object of an upload by what is stored."""
    outcome = SignatureOutcome()
    for target_user, objects in body.items():
        if not isinstance(objects, Mapping):
            raise InvalidParam("the body must map user IDs to key IDs to signed objects")
        for key_id, given in objects.items():
            stored, signers = _signers_of(user_id, target_user, key_id, given, known)
            if stored is None:
                outcome.refuse(target_user, key_id, "M_NOT_FOUND", "Unknown key")
            elif not isinstance(given, Mapping) or not is_same_key(given, orjson.loads(stored)):
                outcome.refuse(target_user, key_id, "M_INVALID_PARAM", "The object is not the one that was uploaded")
            elif not signers or not verify_json(given, user_id, signers):
                outcome.refuse(target_user, key_id, "M_INVALID_SIGNATURE", "Invalid signature")
            else:
                outcome.accepted += [
                    KeySignature(UserId(target_user), key_id, user_id, signer, given["signatures"][user_id][signer])
                    for signer in signing_key_ids(given, user_id)
                    if signer in signers
                ]
    return outcome


def _signers_of(
    user_id: UserId, target_user: str, key_id: str, given: Any, known: KnownKeys
) -> tuple[bytes | None, dict[str, bytes]]:
    """The stored form of what was signed, and whose signatures count for it."""
    if target_user != user_id:
        theirs = known.masters.get(UserId(target_user))
        stored = theirs.content if theirs is not None and theirs.key_id == key_id else None
        return stored, _verify_keys(known.own.get("user_signing"))
    master = known.own.get("master")
    if master is not None and key_id == master.key_id:
        return master.content, _device_verify_keys(given, user_id, known)
    return known.devices.get(key_id), _verify_keys(known.own.get("self_signing"))


def _device_verify_keys(given: Any, user_id: UserId, known: KnownKeys) -> dict[str, bytes]:
    """The public keys of those own devices that claim to have signed an object."""
    found: dict[str, bytes] = {}
    for name in signing_key_ids(given, user_id) if isinstance(given, Mapping) else ():
        stored = known.devices.get(name.partition(":")[2])
        public_key = None if stored is None else public_key_bytes(orjson.loads(stored)["keys"].get(name))
        if public_key is not None:
            found[name] = public_key
    return found


async def _load_known(tx: Transaction, user_id: UserId, body: Mapping[str, Any]) -> KnownKeys:
    own = await cross_signing.find_keys(tx, user_id)
    others = [UserId(target) for target in body if target != user_id]
    mine = body.get(user_id)
    device_ids: set[str] = set()
    if isinstance(mine, Mapping):
        device_ids.update(mine)
        for given in mine.values():
            if isinstance(given, Mapping):
                device_ids.update(name.partition(":")[2] for name in signing_key_ids(given, user_id))
    return KnownKeys(
        own,
        await device_keys.list_for_signing(tx, user_id, sorted(device_ids)) if device_ids else {},
        await cross_signing.list_master_keys(tx, others) if others else {},
    )


async def _rewrite_devices(tx: Transaction, user_id: UserId, device_ids: list[str]) -> None:
    """Merge the stored signatures anew into what is served of these devices."""
    uploaded = await device_keys.list_for_signing(tx, user_id, device_ids) if device_ids else {}
    if not uploaded:
        return
    signatures = await cross_signing.list_own_signatures(tx, user_id, list(uploaded))
    signed: dict[str, bytes | None] = {
        device_id: merge_signatures(orjson.loads(content), user_id, signatures[device_id])
        if device_id in signatures
        else None
        for device_id, content in uploaded.items()
    }
    await device_keys.set_signed(tx, user_id, signed)

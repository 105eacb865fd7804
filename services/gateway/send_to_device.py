"""Send-to-device messages.

Spec: C-S API §Send-to-Device messaging.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.canonical_json import InvalidJson, encode_canonical_json
from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_user_id, server_of
from services.gateway.dependencies import gateway_of
from services.gateway.routing import client_routes, json_object_of, requester_of
from tessera.fanout import Fanout
from tessera.federation.policy import FederationPolicy
from tessera.http.errors import InvalidParam, LimitExceeded
from tessera.http.limits import RateLimits
from tessera.http.replies import json_reply
from tessera.ids import IdSource
from tessera.storage import federation_queue, to_device, user_log
from tessera.storage.database import Database, Transaction
from tessera.storage.federation_queue import Lane, NewEdu
from tessera.storage.to_device import OutgoingMessage

EVERY_DEVICE = "*"
KEY_REQUEST = "m.room_key_request"
MAX_EDU_BYTES = 48 << 10  # peers refuse EDUs above 64 KiB


Messages: TypeAlias = Mapping[UserId, Mapping[str, Mapping[str, Any]]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ToDeviceRequest:
    """One request: its sender and transaction, and user -> device (or "*") -> content."""

    sender: UserId
    device_id: str
    event_type: str
    txn_id: str
    messages: Messages


@dataclass(frozen=True, slots=True)
class OtherServers:
    """What messages to other servers' users need.

    Attributes:
        buckets: of destinations.
    """

    policy: FederationPolicy
    ids: IdSource
    buckets: int


async def send_to_device(request: Request) -> Response:
    """Send messages to devices."""
    gateway = gateway_of(request)
    requester = await requester_of(request)
    body = await json_object_of(request)
    path = request.path_params
    messages = check_messages(body)
    if path["event_type"] == KEY_REQUEST:
        messages = within_limit(gateway.limits, requester.user_id, requester.device_id, messages)
    message = ToDeviceRequest(requester.user_id, requester.device_id, path["event_type"], path["txn_id"], messages)
    others = None
    if gateway.peers is not None:
        others = OtherServers(gateway.peers.policy, gateway.ids, gateway.shards.partitions)
    now_ms = gateway.clock.now_ms()
    await deliver(gateway.accounts, gateway.fanout, gateway.server_name, message, now_ms, others)
    return json_reply({})


# A transaction ID is the client's: it may hold a slash.
routes = client_routes("/sendToDevice/{event_type}/{txn_id:path}", send_to_device, methods=["PUT"])


def check_messages(body: Mapping[str, Any]) -> Messages:
    """User -> device -> content of a request.

    Raises:
        InvalidParam
    """
    given = body.get("messages")
    if not isinstance(given, Mapping):
        raise InvalidParam("messages must be an object")
    messages: dict[UserId, Mapping[str, Mapping[str, Any]]] = {}
    for user_id, devices in given.items():
        if not isinstance(devices, Mapping) or not all(isinstance(content, Mapping) for content in devices.values()):
            raise InvalidParam("messages must map user IDs to device IDs to contents")
        try:
            messages[parse_user_id(user_id)] = devices
        except InvalidIdentifier as error:
            raise InvalidParam(f"messages: {error}") from None
    return messages


def within_limit(limits: RateLimits, sender: UserId, device_id: str, messages: Messages) -> Messages:
    """The messages without the requests for keys to other people that are too many: those are dropped, as in Synapse.

    A client that looks for lost keys asks everybody in the room; the answer would not come faster for an error.
    """
    kept: dict[UserId, Mapping[str, Mapping[str, Any]]] = {}
    for user_id, devices in messages.items():
        try:
            if user_id != sender:
                limits.check("rc_key_requests", f"{sender} {device_id}")
            kept[user_id] = devices
        except LimitExceeded:
            log.info("request for a key dropped", sender=sender, user_id=user_id)
    return kept


async def deliver(
    accounts: Database,
    fanout: Fanout,
    server_name: ServerName,
    request: ToDeviceRequest,
    now_ms: int,
    others: OtherServers | None = None,
) -> None:
    """Put the messages into the inboxes of our own users' devices and the queues of other servers, once.

    Returns after the commit and after the recipients' syncs were told. Devices of ours that do not exist are passed
    over. All recipients are served by one transaction of a few statements.
    """
    local: dict[UserId, Mapping[str, Mapping[str, Any]]] = {}
    remote: dict[ServerName, dict[UserId, Mapping[str, Mapping[str, Any]]]] = {}
    for user_id, devices in request.messages.items():
        server = server_of(user_id)
        if server == server_name:
            local[user_id] = devices
        elif others is not None and others.policy.allows(server):
            remote.setdefault(server, {})[user_id] = devices
    async with accounts.transaction() as tx:
        if not await to_device.claim_transaction(
            tx, request.sender, request.device_id, request.event_type, request.txn_id, now_ms
        ):
            return
        messages = await _address(tx, local)
        heads = await to_device.add_messages(tx, request.sender, request.event_type, messages)
        if others is not None and remote:
            await federation_queue.add_edus(tx, list(_edus_of(request, remote, others.ids)), others.buckets)
    if heads:
        await fanout.publish_user_wakes(user_log.wakes_of(heads))


def _edus_of(
    request: ToDeviceRequest,
    remote: Mapping[ServerName, Mapping[UserId, Mapping[str, Mapping[str, Any]]]],
    ids: IdSource,
) -> Iterator[NewEdu]:
    """The EDUs for other servers, none of them much larger than MAX_EDU_BYTES. Spec: S-S API §Send-to-device."""
    for server, users in remote.items():
        part: dict[UserId, dict[str, Mapping[str, Any]]] = {}
        size = 0
        for user_id, devices in users.items():
            for device_id, content in devices.items():
                length = len(orjson.dumps(content))
                if part and size + length > MAX_EDU_BYTES:
                    yield _edu_of(request, server, part, ids)
                    part, size = {}, 0
                part.setdefault(user_id, {})[device_id] = content
                size += length
        if part:
            yield _edu_of(request, server, part, ids)


def _edu_of(
    request: ToDeviceRequest, server: ServerName, messages: Mapping[UserId, Mapping[str, Any]], ids: IdSource
) -> NewEdu:
    content = {
        "sender": request.sender,
        "type": request.event_type,
        "message_id": ids.token(),
        "messages": messages,
    }
    try:
        edu = encode_canonical_json({"edu_type": "m.direct_to_device", "content": content})
    except InvalidJson as error:
        raise InvalidParam(f"messages: {error}") from None
    return NewEdu(server, Lane.TO_DEVICE, edu)


async def _address(
    tx: Transaction, messages: Mapping[UserId, Mapping[str, Mapping[str, Any]]]
) -> list[OutgoingMessage]:
    """One message for each existing device that is meant; a message for the device itself beats one for all."""
    everywhere = {
        user: orjson.dumps(devices[EVERY_DEVICE]) for user, devices in messages.items() if EVERY_DEVICE in devices
    }
    single = {
        (user, device): orjson.dumps(content)
        for user, devices in messages.items()
        for device, content in devices.items()
        if device != EVERY_DEVICE
    }
    addressed: dict[tuple[UserId, str], bytes] = {}
    if everywhere:
        for user, device in await to_device.list_devices_of(tx, list(everywhere)):
            addressed[user, device] = everywhere[user]
    if single:
        for known in await to_device.list_known_devices(tx, single):
            addressed[known] = single[known]
    return [OutgoingMessage(user, device, content) for (user, device), content in sorted(addressed.items())]

"""Events that a client leaves behind to be sent when it no longer says that it is there.

Whoever knows an event's delay ID may put it off, send or cancel it: a media server does so for its callers. So the
ID is a secret, and these endpoints ask for no token.

Spec: MSC4140 (delayed events).
"""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from matrixcore.identifiers import RoomId, fits_in_bytes
from services.gateway.delayed_event_timers import send_taken
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.room_access import require_joined
from services.gateway.room_directory import check_canonical_alias
from services.gateway.routing import ClientAddress, CurrentRequester, JsonObject
from services.gateway.send_checks import check_transaction_id, redaction_target
from tessera.http.authentication import Requester
from tessera.http.errors import InvalidParam, MatrixError, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import delayed_events
from tessera.storage.delayed_events import DelayedEvent, DelayedOutcome, NewDelayedEvent
from tessera.storage.room_reads.state import find_state

DELAY_PARAMETER = "org.matrix.msc4140.delay"
DELAY_ID_LETTERS = 32
MOST_WAITING = 100  # of one user
_PATH = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"

router = APIRouter(default_response_class=Response)


def delay_of(request: Request) -> int | None:
    """Milliseconds to wait before a PUT of an event takes effect; None for one that takes effect at once."""
    given = request.query_params.get(DELAY_PARAMETER)
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 15 or int(given) == 0:
        raise InvalidParam(f"{DELAY_PARAMETER} must be a positive number of milliseconds")
    return int(given)


async def schedule(
    gateway: GatewayDeps,
    requester: Requester,
    room_id: RoomId,
    event_type: str,
    state_key: str | None,
    content: dict[str, Any],
    delay_ms: int,
    txn_id: str | None = None,
) -> Response:
    """Let an event wait; a repeated PUT answers with the first one's delay ID.

    Raises:
        MatrixError: not a member (403), too long a delay or too many events (400).
    """
    longest = gateway.settings.max_event_delay_duration
    if longest is None or delay_ms > longest:
        fields = {"org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED", "org.matrix.msc4140.max_delay": longest or 0}
        raise MatrixError("The delay is longer than this server allows", errcode="M_UNKNOWN", fields=fields)
    await _check(gateway, room_id, event_type, state_key, content)
    async with gateway.shards.of_room(room_id).reading() as tx:
        await require_joined(tx, room_id, requester.user_id)
        current = None if state_key is None else await find_state(tx, room_id, event_type, state_key)
    request = None
    if txn_id is not None:
        check_transaction_id(txn_id)
        request = f"/rooms/{room_id}/send/{event_type}/{txn_id}"
    event = NewDelayedEvent(
        gateway.ids.letters(DELAY_ID_LETTERS),
        requester.user_id,
        requester.device_id or "",
        request,
        room_id,
        event_type,
        state_key,
        orjson.dumps(content),
        None if current is None else current.event_id,
        delay_ms,
    )
    async with gateway.accounts.transaction() as tx:
        delay_id = await delayed_events.add_delayed_event(tx, event, most=MOST_WAITING)
    if delay_id is None:
        fields = {"org.matrix.msc4140.errcode": "M_MAX_DELAYED_EVENTS_EXCEEDED"}
        raise MatrixError("Too many of your events wait already", errcode="M_UNKNOWN", fields=fields)
    return json_reply({"delay_id": delay_id})


async def _check(
    gateway: GatewayDeps, room_id: RoomId, event_type: str, state_key: str | None, content: dict[str, Any]
) -> None:
    """What the endpoints check that send at once; memberships have rules of their own and cannot wait."""
    if not event_type or not fits_in_bytes(event_type) or not fits_in_bytes(state_key or ""):
        raise InvalidParam("the event type must have 1 to 255 bytes, the state key at most 255")
    if event_type == "m.room.member":
        raise InvalidParam("a membership cannot be delayed")
    if event_type == "m.room.canonical_alias" and state_key == "":
        await check_canonical_alias(gateway.rooms, room_id, content)
    if event_type == "m.room.redaction" and state_key is None:
        redaction_target(content)


@router.get(_PATH)
async def list_delayed_events(requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """The user's events that wait."""
    async with gateway.accounts.reading() as tx:
        waiting = await delayed_events.list_delayed_events(tx, requester.user_id, MOST_WAITING)
    return json_reply({"delayed_events": [_shown(event) for event in waiting]})


@router.get(_PATH + "/{delay_id}")
async def get_delayed_event(delay_id: str, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """One of the user's events that waits."""
    async with gateway.accounts.reading() as tx:
        found = await delayed_events.find_delayed_event(tx, delay_id)
    if found is None or found.user_id != requester.user_id or found.outcome is not None:
        raise NotFound("No such delayed event")
    return json_reply(_shown(found))


@router.post(_PATH + "/{delay_id}")
async def update_delayed_event(
    delay_id: str, body: JsonObject, gateway: GatewayDep, address: ClientAddress
) -> Response:
    """The older form of the three that follow: the action stands in the body."""
    if "action" not in body:
        raise MissingParam("action is missing")
    actions = {"cancel": cancel_delayed_event, "restart": restart_delayed_event, "send": send_delayed_event}
    action = actions.get(body["action"]) if isinstance(body["action"], str) else None
    if action is None:
        raise InvalidParam("action must be cancel, restart or send")
    return await action(delay_id, gateway, address)


@router.post(_PATH + "/{delay_id}/cancel")
async def cancel_delayed_event(delay_id: str, gateway: GatewayDep, address: ClientAddress) -> Response:
    """Never send the event."""
    gateway.limits.check("rc_delayed_event_mgmt", address)
    async with gateway.accounts.transaction() as tx:
        if not await delayed_events.cancel_delayed_event(tx, delay_id):
            _require_ended(await delayed_events.find_delayed_event(tx, delay_id), DelayedOutcome.CANCEL)
    return json_reply({})


@router.post(_PATH + "/{delay_id}/restart")
async def restart_delayed_event(delay_id: str, gateway: GatewayDep, address: ClientAddress) -> Response:
    """Wait from the beginning."""
    gateway.limits.check("rc_delayed_event_mgmt", address)
    async with gateway.accounts.transaction() as tx:
        if await delayed_events.restart_delayed_event(tx, delay_id) is None:
            _require_ended(await delayed_events.find_delayed_event(tx, delay_id), None)
    return json_reply({})


@router.post(_PATH + "/{delay_id}/send")
async def send_delayed_event(delay_id: str, gateway: GatewayDep, address: ClientAddress) -> Response:
    """Send the event now."""
    gateway.limits.check("rc_delayed_event_mgmt", address)
    async with gateway.accounts.transaction() as tx:
        taken = await delayed_events.take_delayed_event(tx, delay_id)
        if taken is None:
            _require_ended(await delayed_events.find_delayed_event(tx, delay_id), DelayedOutcome.SEND)
    if taken is not None:
        await send_taken(gateway.rooms, taken)
    return json_reply({})


def _require_ended(found: DelayedEvent | None, as_wanted: DelayedOutcome | None) -> None:
    """Accept what has happened already as it was wanted.

    Raises:
        NotFound: never heard of it.
        MatrixError: it was sent, is being sent, or was cancelled (409).
    """
    if found is None:
        raise NotFound("No such delayed event")
    outcome = DelayedOutcome.SEND if found.taken else found.outcome
    if outcome != as_wanted:
        raise MatrixError("The delayed event is no longer waiting", errcode="M_UNKNOWN", status=409)


def _shown(event: DelayedEvent) -> dict[str, Any]:
    shown = {
        "delay_id": event.delay_id,
        "room_id": event.room_id,
        "type": event.type,
        "delay": event.delay_ms,
        "running_since": event.running_since,
        "content": orjson.loads(event.content),
    }
    return shown if event.state_key is None else {**shown, "state_key": event.state_key}

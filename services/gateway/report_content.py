"""Reporting events, rooms and users. Spec: C-S API §Reporting Content."""

from typing import Any

import structlog
from starlette.responses import Response

from matrixcore.identifiers import server_of
from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import event_id_of, room_id_of, user_id_of
from services.gateway.room_access import require_joined
from services.gateway.routing import CurrentRequester, client_router
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MissingParam, NotFound
from tessera.http.replies import json_reply
from tessera.room_visibility import sight_of
from tessera.storage import reports, users
from tessera.storage.reports import Report
from tessera.storage.room_reads.events import find_event
from tessera.storage.room_reads.rooms import find_for_reader

router = client_router()
log = structlog.get_logger(__name__)

MAX_REASON_LENGTH = 1_000  # characters; longer ones are cut


@router.post("/rooms/{room_id}/report/{event_id}")
async def report_event(
    room_id: str, event_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Report an event of a room that the user is joined to."""
    gateway.limits.check("rc_reports", requester.user_id)
    room, event = room_id_of(room_id), event_id_of(event_id)
    reason = _reason_of(body)
    async with gateway.shards.of_room(room).reading() as tx:
        try:
            view = await require_joined(tx, room, requester.user_id)
        except Forbidden as error:
            raise NotFound("Event not found") from error
        row = await find_event(tx, room, event)
    if row is None or sight_of(row, view.history) is Sight.HIDDEN:
        raise NotFound("Event not found")
    now_ms = gateway.clock.now_ms()
    await _keep(gateway, Report(requester.user_id, now_ms, room, event, row.sender, reason))
    return json_reply({})


@router.post("/rooms/{room_id}/report")
async def report_room(
    room_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Report a room, whether joined or not."""
    gateway.limits.check("rc_reports", requester.user_id)
    room = room_id_of(room_id)
    reason = _required_reason(body)
    async with gateway.shards.of_room(room).reading() as tx:
        if await find_for_reader(tx, room, requester.user_id) is None:
            raise NotFound("This room is not known here")
    await _keep(gateway, Report(requester.user_id, gateway.clock.now_ms(), room, reason=reason))
    return json_reply({})


@router.post("/users/{user_id}/report")
async def report_user(
    user_id: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Report a user: one of this server who exists, or one of any other."""
    gateway.limits.check("rc_reports", requester.user_id)
    user = user_id_of(user_id)
    reason = _required_reason(body)
    async with gateway.accounts.reading() as tx:
        if server_of(user) == gateway.server_name and await users.find_user(tx, user) is None:
            raise NotFound("This user is not known here")
    await _keep(gateway, Report(requester.user_id, gateway.clock.now_ms(), reported_user=user, reason=reason))
    return json_reply({})


async def _keep(gateway: GatewayDeps, report: Report) -> None:
    async with gateway.accounts.transaction() as tx:
        report_id = await reports.add_report(tx, report)
    log.warning("content reported", report_id=report_id, room_id=report.room_id, event_id=report.event_id)


def _reason_of(body: dict[str, Any]) -> str | None:
    reason = body.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise BadJson("reason must be a string")
    if (score := body.get("score")) is not None and (isinstance(score, bool) or not isinstance(score, int)):
        raise InvalidParam("score must be an integer")
    return None if reason is None else reason[:MAX_REASON_LENGTH]


def _required_reason(body: dict[str, Any]) -> str:
    reason = _reason_of(body)
    if reason is None:
        raise MissingParam("reason is missing")
    return reason

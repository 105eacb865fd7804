"""The list of what has notified the user. Spec: C-S API §Listing Notifications."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import UserId
from matrixcore.push_evaluation import PushOutcome, compile_ruleset
from matrixcore.push_rules import from_stored_form, merged_ruleset
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.event_pages import list_ignored
from services.gateway.notified_events import Judge, Notified, RoomStay, find_notified, list_stays
from services.gateway.routing import CurrentRequester, client_router
from tessera.event_serving import Reader, serve_events
from tessera.http.errors import InvalidParam
from tessera.http.replies import json_reply
from tessera.storage import push_rules, read_positions, user_rooms
from tessera.sync_token import InvalidSyncToken, Point, SyncToken, decode_token, encode_token
from tessera.unread import ReadPoints, own_evaluator, read_points

router = client_router()

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
NOTIFYING_MEMBERSHIPS = ("join", "invite")


@router.get("/notifications")
async def get_notifications(
    requester: CurrentRequester,
    gateway: GatewayDep,
    start: Annotated[str | None, Query(alias="from")] = None,
    limit: Annotated[int, Query(ge=1)] = DEFAULT_LIMIT,
    only: str | None = None,
) -> Response:
    """A page of the events that notified the user, or would have, newest first."""
    user_id = requester.user_id
    below = _parse_start(start)
    judge = await _judge_of(gateway, user_id, highlights_only=only == "highlight")
    async with gateway.accounts.reading() as tx:
        rooms = await user_rooms.list_rooms(tx, user_id, NOTIFYING_MEMBERSHIPS)
    room_ids = [room.room_id for room in rooms]
    stays = await list_stays(gateway.shards, user_id, room_ids, with_names=not judge.default_rules)
    page = await find_notified(gateway.shards, stays, judge, below, min(limit, MAX_LIMIT))
    shown = list(dict.fromkeys(one.room_id for one in page.notified))
    async with gateway.accounts.reading() as tx:
        points = read_points(await read_positions.list_of_rooms(tx, user_id, shown)) if shown else {}
    now_ms = gateway.clock.now_ms()
    reply: dict[str, Any] = {
        "notifications": [
            _notification(one, stays[one.room_id], points.get(one.room_id, ReadPoints()), requester.device_id, now_ms)
            for one in page.notified
        ]
    }
    if page.below is not None:
        reply["next_token"] = _encode_start(page.below)
    return json_reply(reply)


async def _judge_of(gateway: GatewayDeps, user_id: UserId, *, highlights_only: bool) -> Judge:
    async with gateway.accounts.reading() as tx:
        stored = await push_rules.find_rules(tx, user_id)
    own = own_evaluator(user_id, stored)
    defaults = own or compile_ruleset(user_id, merged_ruleset(user_id, from_stored_form({})))
    ignored = await list_ignored(gateway.accounts, user_id)
    return Judge(user_id, defaults, own is None, ignored, highlights_only)


def _notification(
    one: Notified, stay: RoomStay, points: ReadPoints, device_id: str | None, now_ms: int
) -> dict[str, Any]:
    event = one.candidate.event
    reader = Reader(stay.view.history.user_id, device_id, now_ms, stay.view.history)
    read = points.main
    if event.thread_root is not None:
        read = max(points.unthreaded, points.threads.get(event.thread_root, 0))
    return {
        "actions": actions_of(one.outcome),
        "event": serve_events([event], stay.view.rules, reader, room_id=None)[0],
        "read": event.order.anchor <= read,
        "room_id": one.room_id,
        "ts": one.candidate.received_ms,
    }


def actions_of(outcome: PushOutcome) -> Sequence[Any]:
    """The actions of the rule that decided."""
    tweaks = [
        {"set_tweak": name} if value is None else {"set_tweak": name, "value": value}
        for name, value in outcome.tweaks.items()
    ]
    return ["notify", *tweaks]


def _encode_start(below: Mapping[int, int]) -> str:
    """A position for each partition, in the form of a sync token."""
    return encode_token(SyncToken({partition: Point(0, position) for partition, position in below.items()}))


def _parse_start(text: str | None) -> dict[int, int]:
    if text is None:
        return {}
    try:
        return {partition: point.position for partition, point in decode_token(text).positions.items()}
    except InvalidSyncToken as error:
        raise InvalidParam("from is not a token of this server") from error

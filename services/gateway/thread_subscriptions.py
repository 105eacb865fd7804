"""Following threads: what a user wants to hear of, and what not.

Push rules do not know of it yet: who follows a thread is notified by the rules for the room.

Spec: MSC4306 (thread subscriptions), MSC4308 (what has changed of them).
"""

from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import Response

from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.visibility import Sight
from services.gateway.dependencies import GatewayDep, GatewayDeps
from services.gateway.optional_body import OptionalJsonObject
from services.gateway.path_identifiers import event_id_of, room_id_of
from services.gateway.room_access import RoomView, require_joined
from services.gateway.routing import CurrentRequester, absolute_router
from tessera.http.errors import BadJson, InvalidParam, MatrixError, NotFound
from tessera.http.replies import json_reply
from tessera.room_visibility import sight_of
from tessera.storage import thread_subscriptions, user_log
from tessera.storage.database import Transaction
from tessera.storage.room_reads.events import EventRow, find_event
from tessera.storage.thread_subscriptions import ThreadSubscription

router = absolute_router()

MOST = 10_000  # of one user, followed or left
DEFAULT_LIMIT, MAX_LIMIT = 100, 1_000
_HIGHEST = (1 << 63) - 1
_ROOT = "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{thread_root}/subscription"
_NOT_IN_THREAD = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD"
_CONFLICTING = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION"


@router.get(_ROOT)
async def get_thread_subscription(
    room_id: str, thread_root: str, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Whether the user follows the thread."""
    room, root = room_id_of(room_id), event_id_of(thread_root)
    async with gateway.shards.of_room(room).reading() as tx:
        await require_event(tx, room, root, requester.user_id)
    async with gateway.accounts.reading() as tx:
        found = await thread_subscriptions.find_subscription(tx, requester.user_id, room, root)
    if found is None or not found.subscribed:
        raise NotFound("You do not follow this thread")
    return json_reply({"automatic": found.automatic})


@router.put(_ROOT)
async def set_thread_subscription(
    room_id: str, thread_root: str, body: OptionalJsonObject, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Follow the thread: as the user wants, or with `automatic` by the client, because of an event in it."""
    room, root = room_id_of(room_id), event_id_of(thread_root)
    if not isinstance(cause_id := body.get("automatic", ""), str):
        raise BadJson("automatic must be an event ID")
    cause = None
    async with gateway.shards.of_room(room).reading() as tx:
        view, _ = await require_event(tx, room, root, requester.user_id)
        if "automatic" in body:
            cause = await _require_cause(tx, view, event_id_of(cause_id), root)
    await follow(gateway, requester.user_id, room, root, cause)
    return json_reply({})


@router.delete(_ROOT)
async def delete_thread_subscription(
    room_id: str, thread_root: str, requester: CurrentRequester, gateway: GatewayDep
) -> Response:
    """Leave the thread; clients do not bring the user back for what was said before."""
    room, root = room_id_of(room_id), event_id_of(thread_root)
    async with gateway.shards.of_room(room).reading() as tx:
        view, _ = await require_event(tx, room, root, requester.user_id)
    async with gateway.accounts.transaction() as tx:
        found = await thread_subscriptions.find_subscription(tx, requester.user_id, room, root, locked=True)
        if found is not None and not found.subscribed:
            return json_reply({})
        await _require_space(tx, requester.user_id, found)
        heads = await thread_subscriptions.set_subscription(
            tx, requester.user_id, room, root, subscribed=False, left_anchor=view.head.anchor
        )
    await gateway.fanout.publish_user_wakes(user_log.wakes_of(heads))
    return json_reply({})


@router.get("/_matrix/client/unstable/io.element.msc4308/thread_subscriptions")
async def get_thread_subscription_changes(
    requester: CurrentRequester,
    gateway: GatewayDep,
    direction: Annotated[Literal["b"], Query(alias="dir")] = "b",
    limit: Annotated[int, Query(ge=1)] = DEFAULT_LIMIT,
    start: Annotated[str | None, Query(alias="from")] = None,
    end: Annotated[str | None, Query(alias="to")] = None,
) -> Response:
    """A page of the threads that the user follows or has left, the newest change first."""
    limit = min(limit, MAX_LIMIT)
    up_to, after = _position_of(start, "from", _HIGHEST), _position_of(end, "to", 0)
    async with gateway.accounts.reading() as tx:
        page = await thread_subscriptions.list_newest(tx, requester.user_id, after=after, up_to=up_to, limit=limit + 1)
    reply: dict[str, Any] = {"subscribed": {}, "unsubscribed": {}}
    for one in page[:limit]:
        shown: dict[str, Any] = {"bump_stamp": one.position}
        if one.subscribed:
            shown["automatic"] = one.automatic
        kind = "subscribed" if one.subscribed else "unsubscribed"
        reply[kind].setdefault(one.room_id, {})[one.thread_root] = shown
    if len(page) > limit:
        reply["end"] = str(page[limit - 1].position - 1)
    return json_reply(reply)


async def follow(gateway: GatewayDeps, user_id: UserId, room_id: RoomId, root: EventId, cause: EventRow | None) -> None:
    """Note that the user follows a thread; a client's own doing takes nothing back that the user has said.

    Args:
        cause: why a client does so by itself; None if the user wants it.

    Raises:
        MatrixError: 409 the user has left the thread after that event.
    """
    async with gateway.accounts.transaction() as tx:
        found = await thread_subscriptions.find_subscription(tx, user_id, room_id, root, locked=True)
        if found is not None and found.subscribed and (cause is not None or not found.automatic):
            return
        if found is not None and cause is not None and cause.order.anchor <= found.left_anchor:
            raise MatrixError("The user has left the thread since then", errcode=_CONFLICTING, status=409)
        await _require_space(tx, user_id, found)
        heads = await thread_subscriptions.set_subscription(
            tx, user_id, room_id, root, subscribed=True, automatic=cause is not None
        )
    await gateway.fanout.publish_user_wakes(user_log.wakes_of(heads))


async def require_event(
    tx: Transaction, room_id: RoomId, event_id: EventId, user_id: UserId
) -> tuple[RoomView, EventRow]:
    """An event of a room that the user is in, if the user sees it. Raises Forbidden, NotFound."""
    view = await require_joined(tx, room_id, user_id)
    row = await find_event(tx, room_id, event_id)
    if row is None or sight_of(row, view.history) is Sight.HIDDEN:
        raise NotFound("Event not found")
    return view, row


async def _require_cause(tx: Transaction, view: RoomView, event_id: EventId, root: EventId) -> EventRow:
    row = await find_event(tx, view.room.room_id, event_id)
    if row is None or sight_of(row, view.history) is Sight.HIDDEN:
        raise NotFound("Event not found")
    if row.thread_root != root:
        raise MatrixError("The event is not in this thread", errcode=_NOT_IN_THREAD)
    return row


async def _require_space(tx: Transaction, user_id: UserId, found: ThreadSubscription | None) -> None:
    if found is None and not await thread_subscriptions.has_room_for_more(tx, user_id, MOST):
        raise MatrixError("Too many threads", errcode="M_RESOURCE_LIMIT_EXCEEDED", status=403)


def _position_of(text: str | None, name: str, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidParam(f"{name} is not a token of this server")
    return int(text)

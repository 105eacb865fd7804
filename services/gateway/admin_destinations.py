"""What administrators see of servers that are sent to, with the paths and fields of Synapse's admin API."""

from datetime import datetime
from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from services.gateway.admin_listing import PagingQuery
from services.gateway.administration import ADMIN_V1, AdminRequester
from services.gateway.dependencies import GatewayDep
from services.gateway.routing import absolute_router
from tessera.http.errors import InvalidParam, NotFound
from tessera.http.replies import json_reply
from tessera.storage import federation_destinations
from tessera.storage.federation_destinations import ORDERS, DestinationStatus

admin_router = absolute_router()

_DESTINATIONS = f"{ADMIN_V1}/federation/destinations"
MAX_ROOMS = 1_000


@admin_router.get(_DESTINATIONS)
async def list_destinations(
    admin: AdminRequester, gateway: GatewayDep, paging: PagingQuery, destination: str = ""
) -> Response:
    """A page of the servers that are sent to."""
    order = paging.order(ORDERS, "destination")
    async with gateway.accounts.reading() as tx:
        found, total = await federation_destinations.list_statuses(
            tx,
            search=destination,
            order_by=order,
            descending=bool(paging.descending),
            start=paging.start,
            limit=paging.limit,
        )
    reply: dict[str, Any] = {"destinations": [destination_json(one) for one in found], "total": total}
    if paging.start + len(found) < total:
        reply["next_token"] = str(paging.start + len(found))
    return json_reply(reply)


@admin_router.get(f"{_DESTINATIONS}/{{destination}}")
async def get_destination(destination: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """One server."""
    async with gateway.accounts.reading() as tx:
        found = await federation_destinations.find_status(tx, _server_of(destination))
    if found is None:
        raise NotFound("Unknown destination")
    return json_reply(destination_json(found))


@admin_router.get(f"{_DESTINATIONS}/{{destination}}/rooms")
async def get_destination_rooms(
    destination: str, admin: AdminRequester, gateway: GatewayDep, paging: PagingQuery
) -> Response:
    """The rooms of which something waits for a server."""
    server = _server_of(destination)
    async with gateway.accounts.reading() as tx:
        if await federation_destinations.find_status(tx, server) is None:
            raise NotFound("Unknown destination")
        rooms = await federation_destinations.list_queued_rooms(tx, server, MAX_ROOMS)
    page = rooms[paging.start : paging.start + paging.limit]
    reply: dict[str, Any] = {"rooms": [{"room_id": room_id} for room_id in page], "total": len(rooms)}
    if paging.start + len(page) < len(rooms):
        reply["next_token"] = str(paging.start + len(page))
    return json_reply(reply)


@admin_router.post(f"{_DESTINATIONS}/{{destination}}/reset_connection")
async def reset_connection(destination: str, admin: AdminRequester, gateway: GatewayDep) -> Response:
    """Try a server that fails now, and not after its pause."""
    server = _server_of(destination)
    async with gateway.accounts.transaction() as tx:
        found = await federation_destinations.find_status(tx, server)
        if found is None:
            raise NotFound("Unknown destination")
        if not found.failures:
            raise InvalidParam("The retry timing does not need to be reset for this destination.")
        await federation_destinations.reset(tx, server)
    return json_reply({})


def destination_json(status: DestinationStatus) -> dict[str, Any]:
    """A server with Synapse's fields; times and intervals in milliseconds, 0 where it does not fail."""
    failing = status.failures > 0
    return {
        "destination": status.destination,
        "retry_last_ts": _ms(status.last_attempt) or 0 if failing else 0,
        "retry_interval": round(status.retry_seconds * 1000) if failing else 0,
        "failure_ts": _ms(status.failing_since),
        "last_successful_stream_ordering": None,
    }


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _server_of(text: str) -> ServerName:
    try:
        return parse_server_name(text)
    except InvalidIdentifier:
        raise NotFound("Unknown destination") from None

"""The time that an application service gives an event of another network.

Spec: Application Service API §Timestamp massaging.
"""

from dataclasses import replace

from starlette.requests import Request

from matrixcore.canonical_json import MAX_INTEGER
from services.gateway.room_changes import Session, session_of
from services.gateway.routing import Requester
from tessera.http.errors import InvalidParam


def session_with_time(request: Request, requester: Requester) -> Session:
    """The session of a request to send an event, with the event's origin_server_ts where its service gives one.

    Raises:
        InvalidParam: ts is no time.
    """
    session = session_of(requester)
    given = request.query_params.get("ts") if requester.appservice_id is not None else None
    if given is None:
        return session
    if not given.isascii() or not given.isdigit() or len(given) > len(str(MAX_INTEGER)) or int(given) > MAX_INTEGER:
        raise InvalidParam("ts must be a number of milliseconds")
    return replace(session, sent_ms=int(given))

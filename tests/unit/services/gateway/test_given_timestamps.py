"""Times that application services give events. Spec: Application Service API §Timestamp massaging."""

import pytest
from starlette.requests import Request

from matrixcore.identifiers import UserId
from services.gateway.given_timestamps import session_with_time
from tessera.http.authentication import Requester
from tessera.http.errors import InvalidParam

BOB = UserId("@_irc_bob:here.org")
BRIDGED = Requester(BOB, "", appservice_id="irc")


def request(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_a_service_may_say_when() -> None:
    assert session_with_time(request("ts=1600000000000"), BRIDGED).sent_ms == 1_600_000_000_000
    assert session_with_time(request("user_id=x"), BRIDGED).sent_ms is None


def test_nobody_else_may() -> None:
    assert session_with_time(request("ts=1600000000000"), Requester(BOB, "D")).sent_ms is None


@pytest.mark.parametrize("wrong", ["", "-1", "x", "1.5", "9007199254740992", "1" * 40])
def test_a_time_must_be_one(wrong: str) -> None:
    with pytest.raises(InvalidParam):
        session_with_time(request(f"ts={wrong}"), BRIDGED)

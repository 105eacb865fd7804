"""What the run over the specification's OpenAPI files takes for a finding."""

import random
from pathlib import Path

import orjson
import pytest
import requests

from tests.bad_input.allowed_answers import ALLOWED, reason_for
from tests.bad_input.schema_operations import INVALID, VALID, Operation, read_operations
from tests.bad_input.schema_report import report
from tests.bad_input.schema_requests import Tally, judge
from tests.bad_input.schema_world import without_fractions

DESCRIPTION = """
openapi: 3.1.0
info: {title: A part of an API, version: 1.0.0}
servers:
  - url: "https://{host}{basePath}"
    variables:
      host: {default: "localhost"}
      basePath: {default: /_matrix/client/v3}
paths:
  "/rooms/{roomId}/topic":
    put:
      operationId: setTopic
      security: [{accessTokenBearer: []}]
      parameters:
        - {in: path, name: roomId, required: true, schema: {type: string}}
      requestBody:
        content:
          application/json:
            schema: {type: object, properties: {topic: {type: string}}, required: [topic]}
      responses:
        "200": {description: done}
        "403": {description: not allowed}
"""


@pytest.fixture
def operation(tmp_path: Path) -> Operation:
    (tmp_path / "client-server").mkdir()
    (tmp_path / "client-server" / "topics.yaml").write_text(DESCRIPTION)
    (found,) = read_operations(tmp_path, ("client-server",))
    return found


def answer(status: int, body: object) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made._content = orjson.dumps(body)
    return made


def test_a_file_says_what_is_asked_and_answered(operation: Operation) -> None:
    assert (operation.name, operation.label) == ("setTopic", "PUT /_matrix/client/v3/rooms/{roomId}/topic")
    assert (operation.prefix, operation.documented) == ("/_matrix/client/v3", {200, 403})


def test_requests_are_right_and_wrong_and_the_same_for_one_seed(operation: Operation) -> None:
    right = operation.requests(VALID, 10, 1)
    assert right
    # A body that need not be sent is left out now and then.
    given = [case.body for case in right if isinstance(case.body, dict)]
    assert given
    assert all(isinstance(body["topic"], str) for body in given)
    assert [repr(case.body) for case in operation.requests(VALID, 10, 1)] == [repr(case.body) for case in right]
    wrong = [case.body for case in operation.requests(INVALID, 20, 1)]
    assert any(not isinstance(body, dict) or not isinstance(body.get("topic"), str) for body in wrong)


@pytest.mark.parametrize(
    ("status", "body", "finding"),
    [
        (200, {}, None),
        (403, {"errcode": "M_ANYTHING"}, None),
        (400, {"errcode": "M_BAD_JSON"}, None),
        (401, {"errcode": "M_MISSING_TOKEN"}, None),
        (400, {"errcode": "M_UNHEARD_OF"}, "undocumented status"),
        (400, {}, "undocumented status"),
        (204, {}, "undocumented status"),
        (500, {"errcode": "M_UNKNOWN"}, "failure of the server"),
        (502, {"errcode": "M_UNKNOWN"}, "failure of the server"),
    ],
)
def test_what_is_a_finding(operation: Operation, status: int, body: object, finding: str | None) -> None:
    tally = Tally(operation)
    assert list(judge(operation, answer(status, body), tally)) == ([] if finding is None else [finding])
    assert bool(tally.reasons) is (finding is None and status not in operation.documented)


def test_each_reason_is_one(operation: Operation) -> None:
    assert all(len(one.why) > 20 and one.status >= 400 for one in ALLOWED)
    # Another server's fault is excused only where another server is asked.
    assert reason_for("client-server", "getPublicRooms", 502, "M_UNKNOWN") is not None
    assert reason_for("server-server", "setTopic", 401, "M_UNAUTHORIZED") is not None
    assert reason_for("client-server", "setTopic", 401, "M_UNAUTHORIZED") is None
    text = report([Tally(operation, sent=3)], count=3, seconds=1)
    assert "| requests | 3 |" in text


def test_numbers_become_such_as_events_hold() -> None:
    dice = random.Random(1)
    value = {"a": [1.5, 1e300, -(2**70), True, "1.5"], "b": {"c": dice.random()}}
    assert without_fractions(value) == {"a": [1, 2**53 - 1, 1 - 2**53, True, "1.5"], "b": {"c": 0}}

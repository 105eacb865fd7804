"""Sends the requests of an operation, and judges the answers."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import requests
from schemathesis import Case, GenerationMode

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.signing import sign_json
from tests.bad_input.allowed_answers import reason_for
from tests.bad_input.schema_operations import VALID, Operation
from tests.bad_input.schema_world import LONGEST_WAIT_MS, World, without_fractions

HANGS_AFTER_SECONDS = 10
_RENEW_EVERY = 25  # requests
LONG_POLLS = frozenset(["getEvents", "peekEvents", "sync"])


@dataclass(frozen=True)
class Finding:
    """An answer that nothing allows, and the request that brought it about."""

    operation: str
    caller: str
    mode: str
    kind: str
    request: str
    answer: str


@dataclass
class Tally:
    """What came of one operation.

    Attributes:
        statuses: how often each status code was answered.
        reasons: how often an undocumented answer was allowed, by what allows it.
        unsent: requests that HTTP itself has no form for.
    """

    operation: Operation
    sent: int = 0
    unsent: int = 0
    slowest_seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    reasons: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


class Shooter:
    """Fires at one world; a peer's requests are signed, a client's carry a token."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._session = requests.Session()
        self._session.verify = str(world.authority.ca_file)

    def fire_at(
        self, operation: Operation, mode: GenerationMode, caller: str, count: int, start: int, tally: Tally
    ) -> None:
        """Send so many requests of one kind, and add what came of them."""
        dice = random.Random(start)
        for number, case in enumerate(operation.requests(mode, count, start)):
            if number % _RENEW_EVERY == 0:
                self._world.renew(operation)
            self._shoot(operation, mode, caller, case, dice, tally)

    def _shoot(
        self, operation: Operation, mode: GenerationMode, caller: str, case: Case, dice: random.Random, tally: Tally
    ) -> None:
        if mode is VALID:
            case.body = without_fractions(case.body)
        prepared = self._prepared(operation, caller, case, dice)
        if prepared is None:
            tally.unsent += 1
            return
        tally.sent += 1
        said = f"{prepared.method} {prepared.url}"[:400] + (f" {prepared.body!r}"[:400] if prepared.body else "")
        try:
            answer = self._session.send(prepared, timeout=HANGS_AFTER_SECONDS, allow_redirects=False)
        except requests.exceptions.Timeout:
            tally.findings.append(Finding(operation.label, caller, mode.value, "no answer in time", said, ""))
            return
        except requests.exceptions.ConnectionError as error:
            tally.findings.append(Finding(operation.label, caller, mode.value, "connection cut", said, str(error)))
            return
        tally.statuses[answer.status_code] += 1
        tally.slowest_seconds = max(tally.slowest_seconds, answer.elapsed.total_seconds())
        for kind in judge(operation, answer, tally):
            told = f"{answer.status_code} {answer.text[:300]}"
            tally.findings.append(Finding(operation.label, caller, mode.value, kind, said, told))
        if answer.status_code == 401 and caller in self._world.tokens:
            self._world.renew(operation)  # the request before was a logout

    def _prepared(
        self, operation: Operation, caller: str, case: Case, dice: random.Random
    ) -> requests.PreparedRequest | None:
        world = self._world
        case.path_parameters = world.fill_path(case.path_parameters or {}, dice)
        case.query = world.fill(case.query, dice)
        case.body = world.fill(case.body, dice)
        if operation.name in LONG_POLLS and "timeout" not in (case.query or {}):
            case.query = {**(case.query or {}), "timeout": LONGEST_WAIT_MS}
        of_peers = operation.api == "server-server"
        base = f"https://{world.server.server_name}" if of_peers else world.server.base_url
        try:
            parts = case.as_transport_kwargs(base_url=base + operation.prefix)
            # Of two operations with one path, the file writes one with a space behind it.
            parts["url"] = parts["url"].removesuffix("%20").rstrip(" ")
            headers = {name: value for name, value in parts.pop("headers").items() if name.lower() != "authorization"}
            if caller in world.tokens:
                headers["Authorization"] = f"Bearer {world.tokens[caller]}"
            prepared = requests.Request(headers=headers, **parts).prepare()
            if caller == "peer":
                prepared.headers["Authorization"] = self._signature(prepared)
        except (requests.exceptions.RequestException, UnicodeError, ValueError):
            return None
        return prepared

    def _signature(self, prepared: requests.PreparedRequest) -> str:
        """X-Matrix over what is sent; over no content where that is no JSON, which is then refused."""
        peer = self._world.peer
        signed: dict[str, Any] = {
            "method": prepared.method,
            "uri": prepared.path_url,
            "origin": peer.name,
            "destination": peer.target,
        }
        if prepared.body:
            signed["content"] = json.loads(prepared.body)
            encode_canonical_json(signed["content"])
        signature = sign_json(signed, peer.name, peer.key)["signatures"][peer.name][peer.key.key_id]
        fields = {"origin": peer.name, "destination": peer.target, "key": peer.key.key_id, "sig": signature}
        return "X-Matrix " + ",".join(f'{name}="{value}"' for name, value in fields.items())


def judge(operation: Operation, answer: requests.Response, tally: Tally) -> Iterator[str]:
    """What is wrong with an answer: a failure of the server, an error without a name, a status that nothing allows."""
    status, errcode = answer.status_code, _errcode(answer)
    if status in operation.documented:
        return
    reason = reason_for(operation.api, operation.name, status, errcode)
    if reason is not None:
        tally.reasons[status, errcode, reason] += 1
    elif status >= 500:
        yield "failure of the server"
    else:
        yield "undocumented status"


def _errcode(answer: requests.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return ""
    return str(body.get("errcode", "")) if isinstance(body, dict) else ""

"""Who is refused what: every route of the table against each kind of caller who may not use it.

A new endpoint is closed to everybody here until one of the lists below names it, so nobody forgets.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from good_bodies import good_body
from starlette.routing import Route
from target_server import API, Target, register

from tessera.http.guest_access import GUEST_OPERATIONS
from tests.fixtures.reference_pages import HOW, is_being_written, read_page, write_page

# Without a token, by the specification or because that is what they are for.
OPEN = frozenset(
    [
        *("get_versions", "get_wellknown", "get_server_wellknown", "get_wellknown_support", "get_wellknown_policy"),
        "open_web_client",
        *("get_login_flows", "login", "refresh", "register", "check_username_availability"),
        # Their proof is in the body: a nonce and a MAC with the shared secret.
        *("get_nonce", "post_registration"),
        *("get_user_profile", "get_profile_field"),
        *("get_room_visibility_on_directory", "get_room_id_by_alias", "get_public_rooms"),
        # User-interactive: the password is asked for where there is no token.
        *("change_password",),
        # Whoever proves an address has no session yet.
        *("request_token_to_register_email", "request_token_to_register_msisdn"),
        *("request_token_to_reset_password_email", "request_token_to_reset_password_msisdn"),
        *("request_token_to_3pid_email", "request_token_to_3pid_msisdn"),
        "get_room_summary",
        # The old media paths, which are frozen.
        *("get_content_unauthenticated", "get_content_thumbnail_unauthenticated"),
        # What a browser without a token opens while it registers or logs in.
        *("get_auth_fallback", "post_auth_fallback", "get_consent", "registration_token_validity"),
        *("redirect_to_sso", "redirect_to_idp", "sso_callback", "finish_operation"),
        *("get_auth_metadata", "register_client", "authorize", "link", "take_user_code", "begin_device_grant"),
        *("sign_in", "signed_in", "decide", "account", "sign_out", "confirm_reset", "confirm_close"),
        *("issue_tokens", "revoke_token"),
        *("get_validation_page", "submit_validation_page"),
        *("health", "ready", "metrics", "get_server_version"),
        # Of a login, and its ID a secret.
        *("create_rendezvous", "get_rendezvous", "update_rendezvous", "delete_rendezvous"),
        # A delay ID is a secret that the media server of a call has, which has no account.
        *("update_delayed_event", "cancel_delayed_event", "restart_delayed_event", "send_delayed_event"),
    ]
)
# For application services: any other token is an unknown one.
SERVICES_ONLY = frozenset(["ping_appservice"])
# What somebody who left, or was banned, still sees or does.
LEFT_MAY = frozenset(
    [
        *("get_room_state", "get_room_state_by_type", "get_room_state_with_key", "get_room_events"),
        *("get_members_by_room", "get_one_room_event", "get_event_context", "room_initial_sync"),
        *("get_relating_events", "get_relating_events_with_rel_type"),
        *("get_relating_events_with_rel_type_and_event_type", "get_thread_roots", "get_event_by_timestamp"),
        *("forget", "leave", "report_room", "report_event"),
    ]
)
# Said of a room that one is not in: a complaint, whether it is published, one's own notes on it.
ANYBODY_MAY = frozenset(
    [
        *("get_room_visibility_on_directory", "report_room", "forget", "leave"),
        *("put_room_keys_by_room_id", "get_room_keys_by_room_id", "delete_room_keys_by_room_id"),
        *("put_room_key_by_session_id", "get_room_key_by_session_id", "delete_room_key_by_session_id"),
    ]
)
# What a member with no power over others may not do in a room.
NEEDS_POWER = frozenset(
    [
        *("ban", "kick", "unban", "redact_event", "set_room_state", "set_room_state_with_key"),
        *("upgrade_room", "set_room_visibility_on_directory"),
    ]
)
# Of another user: what is public of them, and what is said about them.
ABOUT_OTHERS = frozenset(["get_user_profile", "get_profile_field", "get_presence", "report_user", "set_typing"])
REFUSED = (401, 403, 404)
Row = tuple[str, str, str]
PAGE = "permission-matrix.md"
CALLERS = ("nobody", "guest", "stranger", "left", "banned", "member", "another user", "no administrator")
_INTRODUCTION = f"""# Who is refused what

Every endpoint of the client-server API against each kind of caller who may not use it, with the answer that a test
got (`tests/integration/bad_input/test_permission_matrix.py`; the page is {HOW}). The room
that a path names is private. Callers: nobody has no token; a guest account; a stranger has nothing to do with the
room; one left it; one is banned from it; a member has no power over others; another user asks for what is the user's
own; somebody who is no administrator asks what is theirs.

An empty field: that caller may ask, or the endpoint has nothing to do with that. Guests may use what
`libs/tessera/http/guest_access.py` lists; what somebody who left may still read ends with the stay.
"""


@pytest.fixture
def settings_overrides() -> dict[str, Any]:
    return {"allow_guest_access": True, "url_preview_enabled": True, "url_preview_ip_range_blacklist": ["0.0.0.0/0"]}


@pytest.mark.timeout(300)
async def test_each_caller_is_refused_what_is_not_theirs(target: Target) -> None:
    callers = await _Callers.make(target)
    wrong = []
    rows: list[Row] = []
    for route, method in _routes(target):
        for caller, token, room in callers.of(route):
            answer = await _ask(target, method, route.path, token, room, callers.other)
            rows.append((f"{method} {route.path}", caller, f"{answer.status_code} {_errcode(answer)}".strip()))
            if problem := _problem(caller, answer):
                wrong.append(f"{method} {route.path} ({route.name}): {caller}: {problem}")
    assert not wrong, "\n".join(wrong)
    assert len(rows) > 250
    page = f"{_INTRODUCTION}\n{_table(rows)}"
    if is_being_written():
        await asyncio.to_thread(write_page, PAGE, page)
    missing = set(page.splitlines()) ^ set((await asyncio.to_thread(read_page, PAGE)).splitlines())
    assert not missing, f"docs/{PAGE} is {HOW}: " + "\n".join(sorted(missing))


class _Callers:
    """Those who may not: nobody, a guest, a stranger to the room, one who left it, one banned from it."""

    def __init__(self, target: Target, tokens: Mapping[str, str], other: str) -> None:
        self._room = target.room
        self._tokens = tokens
        self.other = other

    @classmethod
    async def make(cls, target: Target) -> "_Callers":
        guest = await target.client.post(f"{API}/register?kind=guest", json={})
        tokens = {"guest": guest.raise_for_status().json()["access_token"]}
        for name in ("stranger", "left", "banned", "member"):
            account = await register(target.client, name)
            tokens[name] = account["access_token"]
            if name != "stranger":
                await _ok(target, "/rooms/{room}/invite", {"user_id": account["user_id"]})
                await _ok(target, "/rooms/{room}/join", {}, tokens[name])
        await _ok(target, "/rooms/{room}/leave", {}, tokens["left"])
        await _ok(target, "/rooms/{room}/ban", {"user_id": "@banned:" + target.user_id.partition(":")[2]})
        return cls(target, tokens, "@left:" + target.user_id.partition(":")[2])

    def of(self, route: Route) -> Iterator[tuple[str, str | None, str]]:
        """Who is to be refused at a route: (name, token, room)."""
        name = route.name
        if name not in OPEN:
            yield "nobody", None, self._room
            if name not in GUEST_OPERATIONS | SERVICES_ONLY:
                yield "guest", self._tokens["guest"], self._room
        if "/admin/" in route.path and name not in OPEN:
            yield "no administrator", self._tokens["stranger"], self._room
        elif "{user_id}" in route.path and name not in ABOUT_OTHERS | OPEN:
            yield "another user", self._tokens["stranger"], self._room
        elif "{room_id}" in route.path and name not in ANYBODY_MAY:
            yield "stranger", self._tokens["stranger"], self._room
            if name not in LEFT_MAY:
                yield "left", self._tokens["left"], self._room
                yield "banned", self._tokens["banned"], self._room
            if name in NEEDS_POWER:
                yield "member", self._tokens["member"], self._room


async def _ok(target: Target, path: str, body: Any, token: str | None = "") -> None:
    (await target.send("POST", path, body, token=token)).raise_for_status()


def _routes(target: Target) -> Iterator[tuple[Route, str]]:
    stable = {route.name for route in target.app.routes if "/unstable/" not in route.path}
    for route in target.app.routes:
        if route.path.startswith(("/_matrix/client/r0", "/_matrix/media/r0")):
            continue
        # Of what has two names only one is asked for.
        if "/unstable/" in route.path and route.name in stable:
            continue
        for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
            yield route, method


async def _ask(target: Target, method: str, path: str, token: str | None, room: str, other: str) -> httpx.Response:
    names = {
        "room_id": room,
        "room_id_or_alias": room,
        "event_id": target.event,
        "thread_root": target.event,
        "user_id": target.user_id,
        "device_id": target.device_id,
        "event_type": "m.room.message",
        "rel_type": "m.thread",
        "receipt_type": "m.read",
        "kind": "override",
        "version": "1",
        "server_name": "test.example",
        "room_alias": "#alias:test.example",
    }
    for part in [part for part in path.split("/") if part.startswith("{")]:
        value = names.get(part.strip("{}").partition(":")[0], "name")
        path = path.replace(part, quote(value, safe=""))
    body = None if method in ("GET", "DELETE") else good_body(_template(path, names)) or {}
    query = "?dir=f&ts=0&timeout=0&" if method == "GET" else ""
    return await target.send(method, path + query, _filled(body, target, other), token=token)


def _template(path: str, names: Mapping[str, str]) -> str:
    """The path with its parameters' names again, as good_bodies knows it."""
    for name, value in names.items():
        path = path.replace("/" + quote(value, safe=""), "/{" + name + "}")
    return path


def _filled(value: Any, target: Target, other: str) -> Any:
    if isinstance(value, str):
        for name, filled in target.names.items():
            value = value.replace("{" + name + "}", filled)
        return value
    if isinstance(value, dict):
        return {_filled(key, target, other): _filled(item, target, other) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, target, other) for item in value]
    return value


def _problem(caller: str, answer: httpx.Response) -> str | None:
    code = _errcode(answer)
    if caller == "nobody":
        return (
            None
            if answer.status_code == 401 and (code == "M_MISSING_TOKEN" or "flows" in answer.json())
            else _said(answer)
        )
    if caller == "guest":
        return None if (answer.status_code, code) == (403, "M_GUEST_ACCESS_FORBIDDEN") else _said(answer)
    return None if answer.status_code in REFUSED else _said(answer)


def _said(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.text[:120]}"


def _errcode(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return ""
    return str(body.get("errcode", "")) if isinstance(body, dict) else ""


def _table(rows: list[Row]) -> str:
    answers: dict[str, dict[str, str]] = {}
    for endpoint, caller, answer in rows:
        answers.setdefault(endpoint, {})[caller] = answer
    lines = [f"| endpoint | {' | '.join(CALLERS)} |", "|---" * (len(CALLERS) + 1) + "|"]
    for endpoint in sorted(answers, key=lambda name: (name.partition(" ")[2], name)):
        fields = [f"`{endpoint}`", *(answers[endpoint].get(caller, "") for caller in CALLERS)]
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join([*lines, ""])

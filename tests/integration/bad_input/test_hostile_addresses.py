"""Tokens, paths and queries that are not what they should be."""

import json
from urllib.parse import quote

import httpx
import pytest
from target_server import PASSWORD, Target, is_clean

ROOM = "/rooms/{room}"
GIANT = "x" * 6_000
DIGITS = "9" * 6_000

INVALID = ("M_INVALID_PARAM", "M_BAD_JSON", "M_MISSING_PARAM")
REFUSED: list[str] = [
    *(f"/sync?since={since}" for since in ("garbage", "s1", "s1AAAA", "s1%21%21", "s9_1", "1", f"s1{GIANT}", "%C3%A9")),
    *(f"/sync?timeout={timeout}" for timeout in ("abc", "-1", "1e3", "1.5", DIGITS, "%D9%A3x")),
    *(
        f"/sync?filter={quote(text)}"
        for text in ("{", "{]", "[]{", '{"room": 1}', '{"room": {"timeline": {"limit": "a"}}}')
    ),
    '/sync?filter={"room":{"timeline":{"limit":1.5}}}',
    "/sync?filter=99999999999999999999",
    "/sync?filter=none",
    "/sync?full_state=maybe",
    "/sync?set_presence=asleep",
    "/keys/changes?from=garbage&to=garbage",
    "/keys/changes?from=s1",
    *(f"{ROOM}/messages?dir=b&limit={limit}" for limit in ("-1", "1e9", "abc", "1.5", "", "0x10")),
    *(f"{ROOM}/messages?dir=b&from={point}" for point in ("garbage", "t", f"t{DIGITS}", "t1-", "t-1", "s1", GIANT)),
    f"{ROOM}/messages?dir=x",
    f"{ROOM}/messages",
    f"{ROOM}/messages?dir=b&to=garbage",
    *(f"{ROOM}/messages?dir=b&filter={quote(text)}" for text in ("{", "1", '{"types": 1}', '{"limit": "a"}')),
    f"{ROOM}/context/{{event}}?limit=-1",
    f"{ROOM}/context/{{event}}?limit=abc",
    f"{ROOM}/members?at=garbage",
    f"{ROOM}/members?membership=friend",
    "/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts=abc&dir=f",
    "/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts=1&dir=up",
    f"{ROOM}/initialSync?limit=-1",
    f"{ROOM}/state/m.room.create/?format=xml",
    "/_matrix/client/v1/rooms/{room}/relations/{event}?limit=-1",
    "/_matrix/client/v1/rooms/{room}/relations/{event}?from=garbage",
    "/_matrix/client/v1/rooms/{room}/relations/{event}?dir=x",
    "/_matrix/client/v1/rooms/{room}/threads?limit=0",
    "/_matrix/client/v1/rooms/{room}/threads?include=none",
    "/publicRooms?limit=abc",
    "/publicRooms?limit=-1",
    "/publicRooms?since=garbage",
    *(f"/publicRooms?server={name}" for name in ("", "%20", "a%26b", "https://a.org", "a.org:port", GIANT)),
    f"/publicRooms?since=n{DIGITS}.!a:b",
    "/_matrix/client/v1/media/thumbnail/{server}/abc?width=-1&height=1e9",
    f"/_matrix/client/v1/media/thumbnail/{{server}}/abc?width={DIGITS}&height=1",
    "/_matrix/client/v1/media/download/{server}/abc?timeout_ms=x",
    "/rooms/notaroom/messages?dir=b",
    f"/rooms/!{GIANT}:b/messages?dir=b",
    "/rooms/{room}/event/notanevent",
    f"/rooms/{{room}}/event/${GIANT}",
    "/directory/room/notanalias",
    f"/directory/room/%23{GIANT}:b",
    "/profile/nobody",
    "/presence/nobody/status",
]


async def test_wrong_queries_and_identifiers_are_refused(target: Target) -> None:
    wrong: list[str] = []
    for path in REFUSED:
        response = await target.send("GET", path)
        if response.status_code != 400 or response.json()["errcode"] not in INVALID:
            wrong.append(f"{path[:200]}: {response.status_code} {response.text[:200]}")
    assert not wrong, "\n".join(wrong)


# Large, yet nothing to refuse: they are cut to what there is.
CUT = [
    f"{ROOM}/messages?dir=b&limit=1000000000",
    f"{ROOM}/messages?dir=b&limit={2**70}",
    f"{ROOM}/messages?dir=f&from=t{'9' * 18}-999999999",
    f"{ROOM}/messages?dir=b&from=t{'9' * 18}",
    f"{ROOM}/context/{{event}}?limit={2**70}",
    f"{ROOM}/initialSync?limit={2**70}",
    f"/_matrix/client/v1/rooms/{{room}}/relations/{{event}}?limit={2**70}",
    f"/_matrix/client/v1/rooms/{{room}}/threads?limit={2**70}",
    f"/publicRooms?limit={2**70}",
    '/sync?filter={"room":{"timeline":{"limit":9007199254740991}}}',
    '/sync?filter={"room":{"timeline":{"limit":0}}}',
]


async def test_large_limits_are_cut(target: Target) -> None:
    for path in CUT:
        response = await target.send("GET", path)
        assert response.status_code == 200, f"{path}: {response.text[:300]}"


@pytest.mark.parametrize("ts", [2**63, -(2**63) - 1, 2**200, -1])
async def test_times_beyond_all_clocks(target: Target, ts: int) -> None:
    forwards = await target.send("GET", f"/_matrix/client/v1/rooms/{{room}}/timestamp_to_event?ts={ts}&dir=f")
    backwards = await target.send("GET", f"/_matrix/client/v1/rooms/{{room}}/timestamp_to_event?ts={ts}&dir=b")
    assert {forwards.status_code, backwards.status_code} == {200, 404}


BAD_PATHS = [
    "/rooms/%/messages",
    "/rooms/%zz/messages",
    "/rooms/%4/messages",
    "/rooms/%ff%fe/messages",
    "/rooms/%00/messages",
    "/rooms/%ed%a0%80/messages",
    "/rooms/%c0%af/messages",
    "/rooms/{room}/messages?dir=%zz",
    "/rooms/{room}/messages?dir=b&from=%00",
    "/rooms/{room}/messages?dir=b&from=%ff",
    "/rooms/{room}/send/m.x%00/1",
    "/user/{user}/account_data/a%00b",
    "/sync?since=%",
]


async def test_bad_percent_encoding_is_refused_whatever_the_method(target: Target) -> None:
    for path in BAD_PATHS:
        for method in ("GET", "PUT", "DELETE"):
            response = await _raw(target, method, path)
            assert response.status_code == 400, f"{method} {path}: {response.status_code} {response.text[:200]}"
            assert response.json()["errcode"] == "M_INVALID_PARAM"


async def _raw(target: Target, method: str, path: str) -> httpx.Response:
    """A request whose path goes out as it stands: httpx would mend it."""
    for name, value in target.names.items():
        path = path.replace("{" + name + "}", quote(value, safe=""))
    request = target.client.build_request(
        method, "/", content=b"{}", headers={"Authorization": f"Bearer {target.token}"}
    )
    request.url = request.url.copy_with(raw_path=f"/_matrix/client/v3{path}".encode())
    return await target.client.send(request)


STRANGE_NAMES = [
    "a" * 255,
    "a" * 256,
    "ä" * 200,
    "🦜" * 64,
    "..",
    "%2e%2e%2fetc",
    "a%2fb",
    "%20",
    "%e2%80%ae",
    "'%3bDROP TABLE users--",
    "%25s%25n",
    "__proto__",
]


@pytest.mark.parametrize("name", STRANGE_NAMES)
async def test_strange_names_in_paths(target: Target, name: str) -> None:
    for method, path in (
        ("PUT", f"/rooms/{{room}}/send/{name}/t"),
        ("PUT", f"/rooms/{{room}}/send/m.x/{name}"),
        ("PUT", f"/rooms/{{room}}/state/{name}/key"),
        ("PUT", f"/rooms/{{room}}/state/m.x/{name}"),
        ("PUT", f"/user/{{user}}/account_data/{name}"),
        ("PUT", f"/user/{{user}}/rooms/{{room}}/tags/{name}"),
        ("PUT", f"/profile/{{user}}/{name}"),
        ("PUT", f"/sendToDevice/m.x/{name}"),
        ("PUT", f"/pushrules/global/override/{name}"),
        ("PUT", f"/devices/{name}"),
        ("GET", f"/rooms/{{room}}/state/{name}/{name}"),
        ("GET", f"/user/{{user}}/filter/{name}"),
        ("GET", f"/room_keys/version/{name}"),
        ("GET", f"/_matrix/client/v1/media/download/{{server}}/{name}"),
        ("GET", f"/_matrix/client/v1/media/download/{name}/abc"),
        ("DELETE", f"/pushrules/global/content/{name}"),
        ("DELETE", f"/user/{{user}}/rooms/{{room}}/tags/{name}"),
    ):
        body = {"messages": {}, name: 1} if method == "PUT" else None
        response = await target.send(method, path, body)
        assert is_clean(response), f"{method} {path}: {response.status_code} {response.text[:300]}"
    assert (await target.send("GET", "/sync")).status_code == 200


TOKENS = ["unknown", "x" * 10_000, "syt_bWFsbG9yeQ_x_y", "a b", "\x7f", "%00", "'--", "ä"]


@pytest.mark.parametrize("token", TOKENS)
async def test_unknown_tokens(target: Target, token: str) -> None:
    header = f"Bearer {token}".encode()
    for method, path in (("GET", "/account/whoami"), ("GET", "/sync"), ("PUT", "/rooms/{room}/send/m.x/1")):
        url = "/_matrix/client/v3" + path.replace("{room}", target.room)
        response = await target.client.request(method, url, headers={"Authorization": header}, content=b"not JSON")
        assert (response.status_code, response.json()["errcode"]) == (401, "M_UNKNOWN_TOKEN"), (path, response.text)
        assert response.json()["soft_logout"] is False
        query = await target.client.request(method, f"{url}?access_token={quote(token)}", content=b"{}")
        assert query.status_code in (400, 401), query.text
        assert is_clean(query)


async def test_headers_without_a_token(target: Target) -> None:
    for header in ("", "Bearer", "Bearer ", "Basic YTpi", "Bearer\ttoken", "bearer", ","):
        response = await target.client.get("/_matrix/client/v3/account/whoami", headers={"Authorization": header})
        assert response.status_code == 401, header
        assert response.json()["errcode"] in ("M_MISSING_TOKEN", "M_UNKNOWN_TOKEN")


async def test_a_revoked_token_is_unknown_on_every_route(target: Target) -> None:
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "mallory"}, "password": PASSWORD}
    token = (await target.send("POST", "/login", login, token=None)).json()["access_token"]
    assert (await target.send("GET", "/account/whoami", token=token)).status_code == 200
    assert (await target.send("POST", "/logout", token=token)).status_code == 200
    for method, path in (
        ("GET", "/account/whoami"),
        ("GET", "/sync"),
        ("PUT", "/rooms/{room}/send/m.x/1"),
        ("POST", "/createRoom"),
        ("GET", "/_matrix/client/v1/media/config"),
        ("POST", "/_matrix/media/v3/upload"),
    ):
        response = await target.send(method, path, {} if method != "GET" else None, token=token)
        assert (response.status_code, response.json()["errcode"]) == (401, "M_UNKNOWN_TOKEN"), path


async def test_unknown_paths_and_methods(target: Target) -> None:
    for path in ("/nothing", "/rooms//messages", "/_matrix/client/v99/sync", "/_matrix/", "/%2e%2e/%2e%2e/etc/passwd"):
        response = await target.send("GET", path)
        assert (response.status_code, response.json()["errcode"]) == (404, "M_UNRECOGNIZED"), path
    for method in ("PATCH", "DELETE", "TRACE", "BREW"):
        response = await target.send(method, "/sync")
        assert (response.status_code, response.json()["errcode"]) == (405, "M_UNRECOGNIZED"), method


async def test_inline_filters_are_bounded(target: Target) -> None:
    many = json.dumps({"room": {"state": {"types": ["a"] * 1_000}}})
    assert (await target.send("GET", f"/sync?filter={quote(many)}")).status_code == 200
    nested = '{"room":' * 2_000 + "1" + "}" * 2_000
    assert (await target.send("GET", f"/sync?filter={quote(nested)}")).status_code == 400

"""Every route and method of the route table under random paths, queries and bodies.

The law: never a 5xx, and a JSON object with an errcode for whatever is refused.

Random JSON rarely gets past a handler's first check. So bodies use the words that the handler's own module
knows, and many start from a body that the route accepts, in which something is replaced.
"""

import asyncio
import copy
import inspect
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from good_bodies import good_body
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.routing import Route
from target_server import PASSWORD, Target, is_clean

# For a long run by hand, each one with other requests.
LONG = os.environ.get("TESSERA_FUZZ_EXAMPLES")
EXAMPLES = int(LONG or 4_000)
_WORD = re.compile(r"""["']([A-Za-z_][\w.]{1,40})["']""")
_QUERY_WORDS = (
    *("since", "filter", "limit", "dir", "from", "to", "at", "ts", "full_state", "set_presence", "use_state_after"),
    *(
        "membership",
        "not_membership",
        "format",
        "room_id",
        "user_id",
        "server_name",
        "via",
        "version",
        "kind",
        "before",
    ),
    *("after", "username", "width", "height", "method", "animated", "filename", "access_token", "include", "recurse"),
)
_IDS = ("{room}", "{event}", "{user}", "{device}", "{server}", "#alias:{server}", "@nobody:{server}", "!none:{server}")
_EDGES = (0, 1, -1, 2**31, 2**53 - 1, 1 - 2**53, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308)
_TEXTS = st.one_of(
    st.sampled_from(_IDS),
    st.sampled_from(("", " ", "true", "false", "1", "-1", "1e9", "9" * 40, "join", "m.room.message", "b", "f", "{}")),
    st.text(max_size=20),
    st.sampled_from(
        ("x" * 300, "ß" * 256, "\ud800", "a\0b", "../..", "%00", "{", "[]", "\u202e", "$x", "t1", "s1AAAA")
    ),
)


@dataclass(frozen=True)
class Shot:
    """One request, before `{room}` and the like are filled in."""

    method: str
    path: str
    operation: str
    body: bytes | None
    logged_in: bool


@pytest.mark.timeout(240 + EXAMPLES / 20)
@pytest.mark.parametrize("logged_in", [True, False], ids=["logged-in", "anonymous"])
async def test_no_request_makes_it_fail(target: Target, logged_in: bool) -> None:
    loop = asyncio.get_running_loop()
    routes = [route for route in target.app.routes if not route.path.startswith("/_matrix/client/r0")]
    shooter = _Shooter(target)

    @settings(
        max_examples=EXAMPLES if logged_in else EXAMPLES // 4,
        deadline=None,
        database=None,
        derandomize=LONG is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.one_of([_shots(route, logged_in) for route in routes]))
    def law(shot: Shot) -> None:
        response = asyncio.run_coroutine_threadsafe(shooter.fire(shot), loop).result(30)
        assert is_clean(response), f"{shot}: {response.status_code} {response.text[:300]}"

    # Hypothesis is synchronous; the server goes on in this thread.
    await asyncio.to_thread(law)


class _Shooter:
    """Fires, and puts right what the shots have destroyed: the session, the room."""

    ROOM_LASTS = 40  # shots

    def __init__(self, target: Target) -> None:
        self._target = target
        self._shots = 0

    async def fire(self, shot: Shot) -> httpx.Response:
        target = self._target
        self._shots += 1
        if self._shots % self.ROOM_LASTS == 0 and shot.logged_in:
            await self._renew()
        path, body = shot.path, shot.body
        for name, value in target.names.items():
            path = path.replace("%7B" + name + "%7D", quote(value, safe=""))
            body = body and body.replace(b"{" + name.encode() + b"}", value.encode())
        headers = {"Authorization": f"Bearer {target.token}"} if shot.logged_in else {}
        request = target.client.build_request(shot.method, "/", content=body, headers=headers)
        request.url = request.url.copy_with(raw_path=path.encode())
        async with asyncio.timeout(25):
            return await target.client.send(request)

    async def _renew(self) -> None:
        target = self._target
        who = {"type": "m.id.user", "user": target.user_id}
        login = {"type": "m.login.password", "identifier": who, "password": PASSWORD, "device_id": target.device_id}
        if (await target.send("GET", "/account/whoami")).status_code == 401:
            target.token = (await target.send("POST", "/login", login)).raise_for_status().json()["access_token"]
        made = await target.send("POST", "/createRoom", {"room_version": "11", "preset": "public_chat"})
        target.room = made.raise_for_status().json()["room_id"]
        sent = await target.send("PUT", "/rooms/{room}/send/m.room.message/first", {"body": "a", "msgtype": "m.text"})
        target.event = sent.raise_for_status().json()["event_id"]


def _shots(route: Route, logged_in: bool) -> st.SearchStrategy[Shot]:
    words = _words_of(inspect.getmodule(inspect.unwrap(route.endpoint)))
    methods = st.sampled_from(sorted(route.methods or {"GET"}))
    return st.builds(
        lambda method, path, query, body: Shot(method, path + query, route.name, body, logged_in),
        methods,
        _paths(route.path),
        _queries(),
        st.one_of(st.none(), _bodies(route.path, words)),
    )


def _paths(template: str) -> st.SearchStrategy[str]:
    parts = [
        _path_values(part.strip("{}").partition(":")[0]) if part.startswith("{") else st.just(part)
        for part in template.split("/")
    ]
    return st.tuples(*parts).map("/".join)


def _path_values(name: str) -> st.SearchStrategy[str]:
    right = {
        "room_id": "{room}",
        "room_id_or_alias": "{room}",
        "event_id": "{event}",
        "thread_root": "{event}",
        "user_id": "{user}",
        "device_id": "{device}",
        "server_name": "{server}",
        "room_alias": "#alias:{server}",
        "event_type": "m.room.message",
        "rel_type": "m.thread",
        "receipt_type": "m.read",
        "version": "1",
        "kind": "override",
        "scope": "global",
    }.get(name, "name")
    usual = st.just(right)
    # Mostly right: a wrong one ends most requests at once.
    return st.one_of(usual, usual, usual, usual, _TEXTS).map(_quoted)


def _queries() -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(st.sampled_from(_QUERY_WORDS), _TEXTS), max_size=4)
    waits = st.sampled_from(("", "", "", "timeout=0", "timeout=abc", "timeout=10", "timeout_ms=5", "timeout=-5"))
    filled = pairs.map(lambda given: "&".join(f"{name}={_quoted(value)}" for name, value in given))
    return st.tuples(filled, waits).map(lambda both: "?" + "&".join(part for part in both if part) if any(both) else "")


def _bodies(path: str, words: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    values = _values(words)
    objects = st.dictionaries(st.sampled_from(words), values, max_size=5)
    strategies = [objects, objects, values, st.binary(max_size=30)]
    good = good_body(path)
    if good is not None:
        places = list(_places(good))
        changes = st.lists(st.tuples(st.sampled_from(places), values), max_size=2)
        changed = changes.map(lambda given: _changed(good, given))
        strategies += [changed] * 5
    return st.one_of(strategies).map(lambda value: value if isinstance(value, bytes) else json.dumps(value).encode())


@cache
def _values(words: tuple[str, ...]) -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(-10, 10), st.sampled_from(_EDGES), _TEXTS, st.sampled_from(words)
    )
    keys = st.one_of(st.sampled_from(words), _TEXTS)
    return st.recursive(
        leaves,
        lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(keys, below, max_size=3)),
        max_leaves=6,
    )


def _places(value: Any, above: tuple[Any, ...] = ()) -> Any:
    """Where something could be replaced: each path in the value, and its top."""
    yield above
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from _places(below, (*above, key))


def _changed(good: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    made = copy.deepcopy(good)
    for place, value in changes:
        # A place may be gone with the change before.
        with suppress(KeyError, IndexError, TypeError):
            node = made
            for key in place[:-1]:
                node = node[key]
            if place:
                node[place[-1]] = copy.deepcopy(value)
    return made


@cache
def _words_of(module: ModuleType | None) -> tuple[str, ...]:
    found = set(_WORD.findall(inspect.getsource(module))) if module is not None else set()
    return tuple(sorted(found)) or ("type",)


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")

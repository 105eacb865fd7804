"""Bodies that are no JSON, or JSON that must not get in."""

import pytest
from target_server import Target, is_clean

# Every kind of route that takes a body: plain and FastAPI ones, events, account data, keys, with and without a token.
ROUTES = [
    ("POST", "/createRoom"),
    ("PUT", "/rooms/{room}/send/m.room.message/t1"),
    ("PUT", "/rooms/{room}/state/m.room.topic"),
    ("PUT", "/rooms/{room}/state/m.room.member/{user}"),
    ("POST", "/rooms/{room}/invite"),
    ("POST", "/rooms/{room}/ban"),
    ("PUT", "/rooms/{room}/typing/{user}"),
    ("POST", "/rooms/{room}/read_markers"),
    ("POST", "/join/{room}"),
    ("PUT", "/user/{user}/account_data/org.example"),
    ("PUT", "/user/{user}/rooms/{room}/tags/u.work"),
    ("POST", "/user/{user}/filter"),
    ("PUT", "/profile/{user}/displayname"),
    ("PUT", "/presence/{user}/status"),
    ("PUT", "/pushrules/global/room/{room}"),
    ("POST", "/pushers/set"),
    ("POST", "/keys/upload"),
    ("POST", "/keys/query"),
    ("POST", "/keys/claim"),
    ("PUT", "/sendToDevice/m.x/t1"),
    ("POST", "/room_keys/version"),
    ("PUT", "/devices/{device}"),
    ("POST", "/publicRooms"),
    ("POST", "/user_directory/search"),
    ("POST", "/login"),
    ("POST", "/register"),
    ("POST", "/refresh"),
    ("POST", "/account/password"),
    ("POST", "/_synapse/admin/v1/register"),
]
# Where floats are no harm: what is never hashed.
LOOSE = {"/user/{user}/account_data/org.example", "/user/{user}/rooms/{room}/tags/u.work"}

NOT_JSON = {
    "half": b'{"a": ',
    "text": b"hello",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate in a key": b'{"\\udfff": 1}',
    "encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "raw NUL": b'{"a": "\x00"}',
    "trailing comma": b'{"a": 1,}',
    "two objects": b"{}{}",
    "deeper than any parser": b"[" * 100_000,
    "single quotes": b"{'a': 1}",
    "form": b"a=1&b=2",
}
BAD_JSON = {
    "array": b"[]",
    "string": b'"text"',
    "number": b"1",
    "null": b"null",
    "integer beyond": b'{"a": 9007199254740992}',
    "integer below": b'{"a": -9007199254740992}',
    "giant integer": b'{"a": ' + b"9" * 5000 + b"}",
    "NUL": b'{"a": "x\\u0000y"}',
    "NUL in a key": b'{"x\\u0000y": 1}',
    "duplicate keys": b'{"a": 1, "a": 2}',
    "duplicate keys below": b'{"b": [{"a": 1, "\\u0061": 2}]}',
    "duplicate keys with a colon": b'{"a:": 1, "a\\u003a": 2}',
    "nested": b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
    "nested objects": b'{"a": ' * 101 + b"1" + b"}" * 101,
}
FLOATS = {"float": b'{"a": 1.5}', "exponent": b'{"a": 1e3}', "negative zero": b'{"a": -0.0}'}


@pytest.mark.timeout(240)
async def test_every_route_refuses_them(target: Target) -> None:
    wrong: list[str] = []
    for method, path in ROUTES:
        cases = [(name, raw, ("M_NOT_JSON",)) for name, raw in NOT_JSON.items()]
        # What is beyond a double is not JSON to the parser; either code says what is wrong.
        cases += [(name, raw, ("M_BAD_JSON", "M_NOT_JSON")) for name, raw in BAD_JSON.items()]
        if path not in LOOSE:
            cases += [(name, raw, ("M_BAD_JSON",)) for name, raw in FLOATS.items()]
        for name, raw, errcodes in cases:
            response = await target.send(method, path, raw=raw)
            if response.status_code != 400 or response.json()["errcode"] not in errcodes:
                wrong.append(f"{method} {path}, {name}: {response.status_code} {response.text[:200]}")
    assert not wrong, "\n".join(wrong)


async def test_a_body_beyond_a_mebibyte_is_too_large(target: Target) -> None:
    for method, path in ROUTES:
        response = await target.send(method, path, raw=b'{"a": "' + b"x" * (1 << 20) + b'"}')
        assert (response.status_code, response.json()["errcode"]) == (413, "M_TOO_LARGE"), path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/rooms/{room}/send/m.room.message/big%d"),
        ("PUT", "/rooms/{room}/state/org.example.big"),
        ("PUT", "/rooms/{room}/state/m.room.topic"),
    ],
)
async def test_an_event_beyond_its_limit_is_too_large(target: Target, method: str, path: str) -> None:
    # The hashes, the signature and what else an event needs are counted with the content.
    refused = await target.send(method, path.replace("%d", "1"), {"body": "x" * 65_400, "topic": "a"})
    assert (refused.status_code, refused.json()["errcode"]) == (413, "M_TOO_LARGE")
    accepted = await target.send(method, path.replace("%d", "2"), {"body": "x" * 60_000, "topic": "a"})
    assert accepted.status_code == 200


async def test_initial_state_beyond_the_limit_makes_no_room(target: Target) -> None:
    before = (await target.send("GET", "/joined_rooms")).json()
    big = {"type": "org.example", "state_key": "", "content": {"body": "x" * 70_000}}
    response = await target.send("POST", "/createRoom", {"initial_state": [big]})
    assert (response.status_code, response.json()["errcode"]) == (413, "M_TOO_LARGE")
    assert (await target.send("GET", "/joined_rooms")).json() == before


@pytest.mark.parametrize("value", [1.5, 1e300, 2**53, -(2**53)])
async def test_account_data_may_have_floats_but_no_wrong_integers(target: Target, value: float) -> None:
    path = "/user/{user}/account_data/org.example.order"
    response = await target.send("PUT", path, {"order": value})
    if isinstance(value, float):
        assert response.status_code == 200
        assert (await target.send("GET", path)).json() == {"order": value}
    else:
        assert (response.status_code, response.json()["errcode"]) == (400, "M_BAD_JSON")


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/xml", "application/json; charset=utf-16"])
async def test_the_content_type_does_not_matter(target: Target, content_type: str) -> None:
    headers = {"Authorization": f"Bearer {target.token}", "Content-Type": content_type}
    url = f"/_matrix/client/v3/rooms/{target.room}/send/m.room.message/type{len(content_type)}"
    response = await target.client.put(url, content=b'{"body":"x"}', headers=headers)
    assert is_clean(response)
    assert response.status_code == 200

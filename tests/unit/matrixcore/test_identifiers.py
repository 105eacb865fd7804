"""The grammar of identifiers. Spec: Appendices §Identifier Grammar."""

import pytest

from matrixcore.identifiers import (
    InvalidIdentifier,
    ServerName,
    is_compliant_user_id,
    is_valid_localpart,
    localpart_of,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    server_of,
    user_id_of,
)

HASH = "Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"


@pytest.mark.parametrize(
    "name",
    [
        "matrix.org",
        "matrix.org:8888",
        "1.2.3.4",
        "1.2.3.4:1234",
        "[1234:5678::abcd]",
        "[1234:5678::abcd]:5678",
        "localhost",
        "MATRIX.ORG",
        "a-b.example",
        "[::ffff:1.2.3.4]",
    ],
)
def test_server_names_that_are_valid(name: str) -> None:
    assert parse_server_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "under_score.org",
        "matrix.org:",
        "matrix.org:123456",
        "matrix.org:99999",
        "256.1.1.1",
        "[1234::5678::abcd]",
        "[abcd",
        "1234::abcd",
        "ex ample.org",
        "matrix.org\n",
        "exämple.org",
        "a" * 256,
        "٣.org",
        7,
        None,
    ],
)
def test_server_names_that_are_not(name: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_server_name(name)


@pytest.mark.parametrize("user_id", ["@alice:example.org", "@:example.org", "@Ä b\n:[::1]:80", "@a/b=+-._1:x"])
def test_user_ids_that_are_valid(user_id: str) -> None:
    assert parse_user_id(user_id) == user_id


@pytest.mark.parametrize(
    "user_id",
    [
        "alice:example.org",
        "@alice",
        "@alice:",
        "@a\0b:example.org",
        "@a:b:c",
        "@\ud800:x",
        "@" + "a" * 250 + ":x.org",
        1,
    ],
)
def test_user_ids_that_are_not(user_id: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_user_id(user_id)


def test_user_id_of_255_bytes_is_the_longest() -> None:
    server = ServerName("example.org")
    assert len(user_id_of("a" * 242, server)) == 255
    with pytest.raises(InvalidIdentifier):
        user_id_of("a" * 243, server)
    with pytest.raises(InvalidIdentifier):  # bytes count, not characters
        user_id_of("ä" * 122, server)


def test_new_and_compliant_localparts() -> None:
    assert is_valid_localpart("a.b_c=d-e/f+9")
    for bad in ("", "Alice", "a b", "ä", "a:b", "a\n"):
        assert not is_valid_localpart(bad)
    assert is_compliant_user_id(parse_user_id("@Alice!:x"))
    assert not is_compliant_user_id(parse_user_id("@:x"))
    assert not is_compliant_user_id(parse_user_id("@ä:x"))


@pytest.mark.parametrize("room_id", ["!abc:example.org", f"!{HASH}", "!ä/ :x"])
def test_room_ids_that_are_valid(room_id: str) -> None:
    assert parse_room_id(room_id) == room_id


@pytest.mark.parametrize(
    "room_id", ["!abc", f"!{HASH}a", f"!{HASH[:-1]}/", "abc:x", "!a\0:x", "!a:", "!" + "a" * 255 + ":x", None]
)
def test_room_ids_that_are_not(room_id: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_room_id(room_id)


def test_room_aliases() -> None:
    assert parse_room_alias("#rööm name:example.org") == "#rööm name:example.org"
    for bad in ("#:example.org", "room:example.org", "#room", "#a\0:x", "#" + "a" * 255 + ":x"):
        with pytest.raises(InvalidIdentifier):
            parse_room_alias(bad)


def test_event_ids() -> None:
    for good in (f"${HASH}", "$a:x", "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"):
        assert parse_event_id(good) == good
    for bad in ("$", "", "abc", "$a\0", "$" + "a" * 255, "$\udfff", 5):
        with pytest.raises(InvalidIdentifier):
            parse_event_id(bad)


def test_parts() -> None:
    user_id = parse_user_id("@alice:[::1]:8448")
    assert (localpart_of(user_id), server_of(user_id)) == ("alice", "[::1]:8448")
    with pytest.raises(InvalidIdentifier):
        server_of(parse_room_id(f"!{HASH}"))

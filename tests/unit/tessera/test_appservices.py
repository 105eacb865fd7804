"""Registration files of application services."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from matrixcore.identifiers import UserId, parse_server_name
from tessera.appservices import InvalidRegistration, parse_registration, read_registrations

SERVER = parse_server_name("test.example")
IRC: dict[str, Any] = {
    "id": "irc",
    "url": "http://127.0.0.1:1234/",
    "as_token": "as-token-of-irc",
    "hs_token": "hs-token-of-irc",
    "sender_localpart": "_irc_bot",
    "namespaces": {
        "users": [{"exclusive": True, "regex": "@_irc_.*"}, {"exclusive": False, "regex": "@friend_.*"}],
        "aliases": [{"exclusive": False, "regex": "#_irc_.*"}],
        "rooms": [],
    },
}


def write(folder: Path, *registrations: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{number}.yaml" for number in range(len(registrations))]
    for path, registration in zip(paths, registrations, strict=True):
        path.write_text(yaml.safe_dump(registration))
    return paths


def test_whose_a_name_is(tmp_path: Path) -> None:
    services = read_registrations(write(tmp_path, IRC), SERVER)
    (irc,) = services.registrations
    assert (irc.url, irc.sender) == ("http://127.0.0.1:1234", "@_irc_bot:test.example")
    claimed = {
        name: services.is_user_claimed(UserId(name)) for name in ("@_irc_bob:test.example", "@friend_x:y", "@a:b")
    }
    assert claimed == {"@_irc_bob:test.example": True, "@friend_x:y": False, "@a:b": False}
    assert irc.has_user(UserId("@friend_x:test.example"))
    assert not irc.has_user(UserId("@not_irc_:test.example"))
    assert services.find_by_token("as-token-of-irc") is irc
    assert services.find_by_token("hs-token-of-irc") is None
    assert "as-token" not in repr(irc)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"as_token": None}, "as_token must be a string"),
        ({"hs_token": "short"}, "hs_token must have"),
        ({"url": "ftp://x"}, "url must be"),
        ({"sender_localpart": "a b:c" * 100}, "sender_localpart"),
        ({"namespaces": {"users": [{"regex": "("}]}}, "say whether"),
        ({"namespaces": {"users": [{"regex": "(", "exclusive": True}]}}, "no regular expression"),
        ({"protocols": "irc"}, "protocols"),
    ],
)
def test_files_that_cannot_be_used(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRegistration, match=reason):
        parse_registration({**IRC, **changed}, SERVER)


def test_services_that_cannot_be_told_apart(tmp_path: Path) -> None:
    for twin in ({**IRC, "id": "other"}, {**IRC, "as_token": "another-token"}):
        with pytest.raises(InvalidRegistration, match="same id or as_token"):
            read_registrations(write(tmp_path, IRC, twin), SERVER)
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(InvalidRegistration, match="must be a mapping"):
        read_registrations([tmp_path / "list.yaml"], SERVER)

"""Where a login token may go."""

import pytest

from services.gateway.sso_redirects import (
    UnfitRedirect,
    check_redirect_url,
    is_whitelisted,
    shown_host,
    with_login_token,
)


@pytest.mark.parametrize(
    "url",
    [
        "https://chat.example.org/?x=1#/login",
        "http://localhost:8080/",
        "element://vector/webapp/?session=1",
        "io.element.app:/callback",
        "IO.element:/x",
    ],
)
def test_clients_of_the_web_and_apps(url: str) -> None:
    assert check_redirect_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "//evil.example",
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "https:evil.example",
        "https:///evil.example",
        "https://good.example\\@evil.example/",
        "https://good.example@evil.example/",
        "https://a b/",
        "java\nscript:alert(1)",
        "\tjavascript:alert(1)",
        " https://chat.example.org",
        "https://[::1",
        "https://x:port/",
        "https://x/" + "a" * 5000,
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(UnfitRedirect):
        check_redirect_url(url)


def test_letters_of_the_world_are_encoded() -> None:
    assert check_redirect_url("https://chat.example.org/?n=ä%20b") == "https://chat.example.org/?n=%C3%A4%20b"


@pytest.mark.parametrize(
    ("url", "led_to"),
    [
        ("https://c.org/", "https://c.org/?loginToken=t%2F1"),
        ("https://c.org/?a=1&b=%20", "https://c.org/?a=1&b=%20&loginToken=t%2F1"),
        ("https://c.org/?loginToken=old&a=1&login%54oken=older", "https://c.org/?a=1&loginToken=t%2F1"),
        ("https://c.org/#/home?x=1", "https://c.org/?loginToken=t%2F1#/home?x=1"),
        ("app:/x", "app:/x?loginToken=t%2F1"),
    ],
)
def test_the_token_goes_into_the_query(url: str, led_to: str) -> None:
    assert with_login_token(url, "t/1") == led_to


@pytest.mark.parametrize(
    ("url", "entry", "is_in"),
    [
        ("https://chat.example.org/", "https://chat.example.org/", True),
        ("https://chat.example.org/x?y", "https://chat.example.org/", True),
        ("https://chat.example.org/x", "https://chat.example.org", True),
        ("https://chat.example.org", "https://chat.example.org", True),
        ("https://chat.example.org.evil.example/", "https://chat.example.org", False),
        ("https://chat.example.org:8448/", "https://chat.example.org", False),
        ("https://chat.example.org/webmail", "https://chat.example.org/web", False),
        ("element://vector/", "element:", True),
        ("http://chat.example.org/", "https://chat.example.org/", False),
    ],
)
def test_the_whitelist_is_of_beginnings_not_of_parts_of_names(url: str, entry: str, is_in: bool) -> None:
    assert is_whitelisted(url, ["https://other.example/", entry]) is is_in


def test_people_are_asked_about_the_host() -> None:
    assert shown_host("https://chat.example.org:8443/x") == "chat.example.org:8443"
    assert shown_host("io.element.app:/x") == "io.element.app:"
    assert shown_host("element://vector/x") == "element://vector"

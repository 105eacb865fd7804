"""Where a browser is sent after a single sign-on. Spec: C-S API §SSO client login/authentication."""

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote_plus, urlsplit

MAX_URL_LENGTH = 4_096
LOGIN_TOKEN = "loginToken"  # noqa: S105  the name of a parameter

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,63}):", re.IGNORECASE)
# What would run in, or show as, a page of this server, or lead into the person's own machine.
_FORBIDDEN = frozenset(
    [
        "about",
        "blob",
        "data",
        "file",
        "filesystem",
        "ftp",
        "javascript",
        "mailto",
        "vbscript",
        "view-source",
        "ws",
        "wss",
    ]
)
_SAFE = "%:/?#[]@!$&'()*+,;=~-._"


class UnfitRedirect(ValueError):
    """Nobody is sent there; the text is for people."""


def check_redirect_url(url: str) -> str:
    """A client's redirectUrl in ASCII: of the web, or of an app's own scheme.

    Raises:
        UnfitRedirect
    """
    if len(url) > MAX_URL_LENGTH:
        raise UnfitRedirect("The address of the app is too long.")
    # Browsers drop some of these and take a backslash for a slash: what they see must be what is checked here.
    if "\\" in url or not url.isprintable() or " " in url:
        raise UnfitRedirect("The address of the app is malformed.")
    found = _SCHEME.match(url)
    scheme = "" if found is None else found[1].lower()
    if not scheme or scheme in _FORBIDDEN:
        raise UnfitRedirect("The address of the app is of a kind that is not allowed.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UnfitRedirect("The address of the app is malformed.") from None
    if scheme in ("http", "https") and (not host or "@" in parts.netloc):
        raise UnfitRedirect("The address of the app is malformed.")
    return quote(url, safe=_SAFE)


def with_login_token(url: str, token: str) -> str:
    """The URL with the token as a parameter of its query, in place of any that it had."""
    rest, hash_sign, fragment = url.partition("#")
    base, _, query = rest.partition("?")
    kept = [part for part in query.split("&") if part and unquote_plus(part.partition("=")[0]) != LOGIN_TOKEN]
    query = "&".join([*kept, f"{LOGIN_TOKEN}={quote(token, safe='')}"])
    return f"{base}?{query}{hash_sign}{fragment}"


def is_whitelisted(url: str, whitelist: Sequence[str]) -> bool:
    """Whether a client is one that the operator vouches for: its URL begins with an entry, and not inside a name."""
    return any(_begins_with(url, entry) for entry in whitelist)


def shown_host(url: str) -> str:
    """What people are asked about: the host of a web client, or the scheme of an app with what follows at once."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.scheme}:"


def _begins_with(url: str, entry: str) -> bool:
    if not url.startswith(entry):
        return False
    # Else https://chat.example.org would also stand for https://chat.example.org.evil.example.
    return len(url) == len(entry) or entry[-1] in "/:?#=&" or url[len(entry)] in "/?#"

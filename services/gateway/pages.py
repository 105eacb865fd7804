"""Pages for people's browsers: the fallback of the authentication, proven addresses, documents.

Nothing of a page is run or loaded that is not named in its Content-Security-Policy.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tessera.http.bodies import read_body
from tessera.http.errors import BadJson
from tessera.ids import IdSource

MAX_FORM_BYTES = 65_536
MAX_FORM_FIELDS = 20

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html"])
)


def page(
    ids: IdSource,
    template: str,
    values: Mapping[str, Any],
    *,
    status: int = 200,
    scripts: str = "",
    frames: str = "'none'",
    forms: str = "",
) -> Response:
    """A page from a template.

    Args:
        values: among them title and server_name.
        scripts, frames: sources of scripts and frames that it needs beside its own scripts.
        forms: where its forms lead beside this server.
    """
    nonce = ids.token(16)
    html = _TEMPLATES.get_template(template).render({"nonce": nonce, "error": None, **values})
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}' {scripts}; frame-src {frames}; "
        f"form-action 'self' {forms}; frame-ancestors 'none'; base-uri 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(html, status, headers)


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template as text: for mails."""
    return _TEMPLATES.get_template(template).render(values)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that a page sent.

    Raises:
        BadJson: it is none. TooLarge
    """
    body = await read_body(request, MAX_FORM_BYTES)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS))
    except ValueError as error:
        raise BadJson("That is no form") from error

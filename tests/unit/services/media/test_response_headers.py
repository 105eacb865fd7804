"""Headers of downloads. Spec: C-S API §Serving inline content."""

import pytest

from services.media.response_headers import (
    clean_content_type,
    clean_filename,
    content_disposition,
    content_headers,
)


@pytest.mark.parametrize(
    ("content_type", "filename", "header"),
    [
        ("image/png", None, "inline"),
        ("Text/Plain; charset=utf-8", "a b.txt", 'inline; filename="a b.txt"'),
        ("text/html", "x.html", 'attachment; filename="x.html"'),
        ("image/svg+xml", None, "attachment"),
        ("image/png", 'q"\\.png', 'inline; filename="q\\"\\\\.png"'),
        ("image/png", "Grüße.png", "inline; filename*=utf-8''Gr%C3%BC%C3%9Fe.png"),
    ],
)
def test_disposition(content_type: str, filename: str | None, header: str) -> None:
    assert content_disposition(content_type, filename) == header


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        ("image/png", "image/png"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("text/html\r\nset-cookie: a=b", "application/octet-stream"),
        ("image/" + "p" * 300, "application/octet-stream"),
    ],
)
def test_only_media_types_are_kept(given: str | None, stored: str) -> None:
    assert clean_content_type(given) == stored


def test_a_file_name_cannot_end_its_header() -> None:
    assert clean_filename('a\r\nb".txt') == 'ab".txt'
    assert clean_filename("\n") is None
    assert len(clean_filename("n" * 999) or "") == 255


def test_every_download_is_sandboxed() -> None:
    headers = dict(content_headers("text/html", None, 5))
    assert headers[b"content-security-policy"].startswith(b"sandbox; default-src 'none'; script-src 'none';")
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cross-origin-resource-policy"] == b"cross-origin"
    assert headers[b"content-length"] == b"5"

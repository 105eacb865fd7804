"""Pages are read by a process with limits."""

import pytest

from services.media.page_process import UnreadablePage, read_page_apart

URL = "https://example.org/"


async def test_a_page_is_read() -> None:
    page = '<title>Grüße</title><meta property="og:image" content="a.png">'.encode("latin-1")
    summary = await read_page_apart(page, "latin-1", URL)
    assert (summary.fields, summary.image_url) == ({"og:title": "Grüße"}, "https://example.org/a.png")


async def test_a_page_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(UnreadablePage):
        await read_page_apart(b"<ul><li>" * 60_000, None, URL)

"""Summaries of pages."""

import pytest

from services.media.page_reading import MAX_VALUE_LENGTH, decode_page, read_page

URL = "https://example.org/blog/post.html"


def page(head: str, body: str = "") -> bytes:
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>".encode()


def test_opengraph_comes_first() -> None:
    summary = read_page(
        page(
            '<title>Tab</title><meta name="description" content="plain">'
            '<meta property="og:title" content=" A   Title\n"><meta property="og:description" content="About">'
            '<meta property="og:site_name" content="Site"><meta property="og:title" content="second">'
            '<meta property="og:image" content="/small.png"><meta property="og:image:secure_url" content="img/big.png">'
            '<meta property="og:image:width" content="10"><meta property="fb:app_id" content="1">'
        ),
        None,
        URL,
    )
    assert summary.fields == {"og:title": "A Title", "og:description": "About", "og:site_name": "Site"}
    assert summary.image_url == "https://example.org/blog/img/big.png"


def test_a_page_without_opengraph_is_read_as_people_do() -> None:
    text = "The first paragraph that says something worth showing to somebody."
    summary = read_page(page("<title>Tab</title>", f"<p>Menu</p><p>{text}</p><script>p()</script>"), None, URL)
    assert summary.fields == {"og:title": "Tab", "og:description": text}
    assert summary.image_url is None
    long = read_page(page("", f"<h1>Head</h1><p>{'word ' * 100}</p>"), None, URL).fields
    assert long["og:title"] == "Head"
    assert long["og:description"].endswith("word…")
    assert len(long["og:description"]) <= 301
    tweet = read_page(
        page(
            '<meta name="twitter:title" content="T"><meta name="description" content="D">'
            '<meta name="twitter:image" content="//cdn.example/x.png">'
        ),
        None,
        URL,
    )
    assert (tweet.fields, tweet.image_url) == (
        {"og:title": "T", "og:description": "D"},
        "https://cdn.example/x.png",
    )
    assert (
        read_page(page('<link rel="image_src" href="a.png">'), None, URL).image_url == "https://example.org/blog/a.png"
    )


@pytest.mark.parametrize(
    "link", ["data:image/png;base64,AAAA", "javascript:alert(1)", "file:///etc/passwd", "http://[", ""]
)
def test_images_that_are_no_web_addresses(link: str) -> None:
    assert read_page(page(f'<meta property="og:image" content="{link}">'), None, URL).image_url is None


@pytest.mark.parametrize(
    ("content", "charset", "title"),
    [
        ("<title>Grüße</title>".encode("latin-1"), "ISO-8859-1", "Grüße"),
        ('<meta charset="shift_jis"><title>日本</title>'.encode("shift_jis"), None, "日本"),
        (
            '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251"><title>Мир</title>'.encode(
                "cp1251"
            ),
            None,
            "Мир",
        ),
        ("<title>Grüße</title>".encode(), "no-such-set", "Grüße"),
        ("<title>Grüße</title>".encode(), "punycode", "Grüße"),
        (b"<title>a\xffb</title>", "utf-8", "a\ufffdb"),
    ],
)
def test_character_sets(content: bytes, charset: str | None, title: str) -> None:
    assert read_page(content, charset, URL).fields["og:title"] == title


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 1000,
        b"<" * 100_000,
        b"<div>" * 5_000,
        b'<meta property="og:title" content="' + b"x" * 100_000,
        b'<meta property="og:a" content="b">' * 10_000,
        b"\xfe\xff" + "<title>x".encode("utf-16-be"),
    ],
)
def test_hostile_pages_end_soon_and_small(content: bytes) -> None:
    fields = read_page(content, None, URL).fields
    assert len(fields) <= 40
    assert all(len(value) <= MAX_VALUE_LENGTH for value in fields.values())


def test_texts_are_one_line_without_control_characters() -> None:
    fields = read_page(page('<meta property="og:title" content="a&#8238;b&#0;c\td">'), None, URL).fields
    assert "\u202e" not in fields["og:title"]
    assert fields["og:title"].startswith("ab")
    assert len(read_page(page(f"<title>{'y' * 5000}</title>"), None, URL).fields["og:title"]) == MAX_VALUE_LENGTH
    assert decode_page(b"abc", "utf-16") != ""

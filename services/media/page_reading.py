"""What a page says of itself: OpenGraph, else what stands in its head and its first paragraph.

Pages come from strangers, and there are some that keep a parser busy for minutes (a hundred thousand nested lists).
So this file is also a program that reads one page and ends: `page_process` runs it with limits. It needs nothing of
Tessera's, which makes it start in a moment.

Spec: C-S API GET /media/preview_url; https://ogp.me/
"""

import json
import re
import resource
import sys
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from selectolax.lexbor import LexborHTMLParser

MAX_FIELDS = 40
MAX_NAME_LENGTH = 64
MAX_VALUE_LENGTH = 1_000
MAX_DESCRIPTION_LENGTH = 300
MIN_PARAGRAPH_LENGTH = 40
CHARSET_PROBE_BYTES = 2_048

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30

_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_SPACES = re.compile(r"\s+")
# Names from strangers: only codecs that are known to take linear time.
_CHARSET = re.compile(
    r"utf-?8|utf-?16(-?[lb]e)?|us-ascii|ascii|iso-?8859-?[0-9]{1,2}|latin-?[0-9]|windows-?125[0-8]|cp125[0-8]"
    r"|shift[_-]?jis|euc-(jp|kr)|iso-2022-(jp|kr)|gb2312|gbk|gb18030|big5|koi8-[ru]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PageSummary:
    """What a preview shows.

    Attributes:
        fields: OpenGraph names and their texts, without the image.
        image_url: absolute, of http or https.
    """

    fields: dict[str, str]
    image_url: str | None


def read_page(content: bytes, charset: str | None, url: str) -> PageSummary:
    """The summary of an HTML page, which may be cut off anywhere.

    Args:
        charset: of the Content-Type, if it names one.
        url: where the page came from, for its relative links.
    """
    tree = LexborHTMLParser(decode_page(content, charset))
    tags = _meta_tags(tree)
    fields = {name: value for name, value in tags.items() if name.startswith("og:")}
    image = next((tags[name] for name in ("og:image:secure_url", "og:image:url", "og:image") if name in tags), None)
    image = image or tags.get("twitter:image") or _link_to_image(tree)
    for name in [name for name in fields if name == "og:image" or name.startswith("og:image:")]:
        del fields[name]
    if title := fields.get("og:title") or tags.get("twitter:title") or _title_of(tree):
        fields["og:title"] = title
    described = fields.get("og:description") or tags.get("twitter:description") or tags.get("description")
    if described or (described := _first_paragraph(tree)):
        fields["og:description"] = described
    return PageSummary(fields, None if image is None else _absolute(url, image))


def decode_page(content: bytes, charset: str | None) -> str:
    """The text of a page in the character set that it names, else UTF-8; wrong bytes are replaced."""
    if charset is None and (found := _META_CHARSET.search(content[:CHARSET_PROBE_BYTES])) is not None:
        charset = found[1].decode("ascii")
    if charset is None or _CHARSET.fullmatch(charset) is None:
        charset = "utf-8"
    try:
        return content.decode(charset, "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def clean_text(text: str) -> str:
    """One line without control characters, cut to what a field may have."""
    return _SPACES.sub(" ", "".join(char for char in text if char.isprintable() or char.isspace())).strip()[
        :MAX_VALUE_LENGTH
    ]


def _meta_tags(tree: LexborHTMLParser) -> dict[str, str]:
    """The names and contents of the first <meta> elements; of two with one name the first."""
    found: dict[str, str] = {}
    for node in tree.css("meta[content]"):
        name = node.attributes.get("property") or node.attributes.get("name") or node.attributes.get("itemprop")
        value = node.attributes.get("content")
        if not name or not value or len(name) > MAX_NAME_LENGTH:
            continue
        name = name.strip().lower()
        if name.startswith(("og:", "twitter:")) or name == "description":
            if (text := clean_text(value)) and name not in found:
                found[name] = text
            if len(found) >= MAX_FIELDS:
                break
    return found


def _title_of(tree: LexborHTMLParser) -> str | None:
    for selector in ("head > title", "title", "h1"):
        node = tree.css_first(selector)
        if node is not None and (text := clean_text(node.text(deep=True))):
            return text
    return None


def _link_to_image(tree: LexborHTMLParser) -> str | None:
    node = tree.css_first('link[rel="image_src"][href]')
    return None if node is None else node.attributes.get("href")


def _first_paragraph(tree: LexborHTMLParser) -> str | None:
    for selector in ("article p", "main p", "p"):
        for node in tree.css(selector)[:MAX_FIELDS]:
            text = clean_text(node.text(deep=True, separator=" "))
            if len(text) >= MIN_PARAGRAPH_LENGTH:
                if len(text) <= MAX_DESCRIPTION_LENGTH:
                    return text
                return text[:MAX_DESCRIPTION_LENGTH].rsplit(" ", 1)[0] + "…"
    return None


def _absolute(base: str, link: str) -> str | None:
    try:
        url = urljoin(base, link.strip())
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None


def main() -> None:
    """Read a page: a line of JSON [charset, url], then the page to the end; answer JSON [fields, image URL]."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    charset, url = json.loads(sys.stdin.buffer.readline())
    summary = read_page(sys.stdin.buffer.read(), charset, url)
    sys.stdout.buffer.write(json.dumps([summary.fields, summary.image_url]).encode())


if __name__ == "__main__":
    main()

"""The headers under which stored content is served, so that it can do no harm in a browser.

Spec: C-S API §Content repository, §Serving inline content.
"""

import re
from urllib.parse import quote

DEFAULT_CONTENT_TYPE = "application/octet-stream"
MAX_CONTENT_TYPE_LENGTH = 255
MAX_FILENAME_LENGTH = 255

INLINE_TYPES = frozenset(
    (
        "text/css", "text/plain", "text/csv", "application/json", "application/ld+json",
        "image/jpeg", "image/gif", "image/png", "image/apng", "image/webp", "image/avif",
        "video/mp4", "video/webm", "video/ogg", "video/quicktime",
        "audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav", "audio/x-wav",
        "audio/x-pn-wav", "audio/flac", "audio/x-flac",
    )
)  # fmt: skip

SAFETY_HEADERS = (
    (
        b"content-security-policy",
        b"sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; "
        b"style-src 'unsafe-inline'; object-src 'self';",
    ),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-robots-tag", b"noindex, nofollow, noarchive, noimageindex"),
    (b"cache-control", b"private, immutable, max-age=86400"),
)

_CONTENT_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+( *;[\x20-\x7e]*)?")
_QUOTABLE = re.compile(r"[\x20-\x7e]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def clean_content_type(given: str | None) -> str:
    """The type of an upload as it is stored and served: what was given if it is a media type at all."""
    if given is None or len(given) > MAX_CONTENT_TYPE_LENGTH or not _CONTENT_TYPE.fullmatch(given):
        return DEFAULT_CONTENT_TYPE
    return given


def clean_filename(given: str | None) -> str | None:
    """The file name of an upload without control characters, at most 255 characters; None if nothing is left."""
    return None if given is None else (_CONTROL.sub("", given)[:MAX_FILENAME_LENGTH] or None)


def content_disposition(content_type: str, filename: str | None) -> str:
    """`inline` for types that no browser executes, else `attachment`, with the file name if there is one.

    Spec: RFC 6266; names outside ASCII go as filename*.
    """
    kind = "inline" if content_type.partition(";")[0].strip().lower() in INLINE_TYPES else "attachment"
    if filename is None:
        return kind
    if _QUOTABLE.fullmatch(filename):
        escaped = filename.replace("\\", "\\\\").replace('"', '\\"')
        return f'{kind}; filename="{escaped}"'
    return f"{kind}; filename*=utf-8''{quote(filename, safe='')}"


def content_headers(content_type: str, filename: str | None, size_bytes: int) -> list[tuple[bytes, bytes]]:
    """All headers of a download."""
    return [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", str(size_bytes).encode("ascii")),
        (b"content-disposition", content_disposition(content_type, filename).encode("latin-1")),
        *SAFETY_HEADERS,
    ]

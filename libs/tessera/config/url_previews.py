"""The settings of link previews, with Synapse's names."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field

from tessera.config.values import Network, Section, Size

# What a rule may look at: the parts of a URL as Python's urlsplit names them.
URL_PARTS = frozenset(("scheme", "netloc", "path", "query", "fragment", "username", "password", "hostname", "port"))


def _check_rule(rule: Mapping[str, str]) -> Mapping[str, str]:
    if not rule:
        raise ValueError("names no part of a URL, so that it would forbid everything")
    for part, pattern in rule.items():
        if part not in URL_PARTS:
            raise ValueError(f"{part} is no part of a URL; one of {', '.join(sorted(URL_PARTS))}")
        if pattern.startswith("^"):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern} is no regular expression: {error}") from None
    return rule


# Part of a URL -> glob, or a regular expression where it begins with "^".
UrlRule = Annotated[Mapping[str, str], AfterValidator(_check_rule)]


class UrlPreviews(Section):
    """Whether and how the server looks at pages that links lead to; `Settings` inherits these keys."""

    url_preview_enabled: bool = False
    url_preview_ip_range_blacklist: tuple[Network, ...] = Field(
        default=(),
        validation_alias=AliasChoices("url_preview_ip_range_blacklist", "url_preview_ip_range_blocklist"),
    )
    url_preview_ip_range_whitelist: tuple[Network, ...] = Field(
        default=(),
        validation_alias=AliasChoices("url_preview_ip_range_whitelist", "url_preview_ip_range_allowlist"),
    )
    url_preview_url_blacklist: tuple[UrlRule, ...] = Field(
        default=(), validation_alias=AliasChoices("url_preview_url_blacklist", "url_preview_url_blocklist")
    )
    url_preview_accept_language: tuple[str, ...] = ("en",)
    max_spider_size: Size = 10 << 20

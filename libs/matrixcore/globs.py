"""Glob patterns compiled to matchers whose time grows linearly with the text.

Patterns come from users and run over every message, so they must not be able to make a
regular expression backtrack: each part between two `*` is matched in an atomic group, which
takes the leftmost place and never reconsiders it. For globs the leftmost place is always a best one.

Spec: Appendices §Glob-style matching; C-S API §Push Rules (word boundaries).
"""

import re
from collections.abc import Callable

Matcher = Callable[[str], bool]

_WORD = "A-Za-z0-9_"
# Not between two word characters: the value's start or end, or beside a separator.
_BOUNDARY = f"(?:(?<![{_WORD}])|(?![{_WORD}]))"
_WORD_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")


def whole_value_matcher(pattern: str) -> Matcher:
    """A predicate: does the glob cover the entire value, ignoring case?

    Spec: C-S API §Push Rules, `event_match`.
    """
    if "*" not in pattern and "?" not in pattern:
        folded = pattern.lower()
        return lambda value: value == pattern or value.lower() == folded
    return _full_match(_expression(pattern, single_wildcard=True), re.DOTALL | re.IGNORECASE)


def type_pattern_matcher(pattern: str) -> Matcher:
    """A predicate for event types in filters: `*` is the only wildcard, case counts.

    Spec: C-S API §Filtering.
    """
    if "*" not in pattern:
        return lambda value: value == pattern
    return _full_match(_expression(pattern, single_wildcard=False), re.DOTALL)


def word_matcher(pattern: str) -> Matcher:
    """A predicate: does the glob match part of the text that starts and ends at word boundaries, ignoring case?

    Spec: C-S API §Push Rules, `content.body` of `event_match`, content-specific rules.
    """
    if "*" not in pattern and "?" not in pattern:
        folded = pattern.lower()
        return lambda text: contains_word(text.lower(), folded)
    parts = [_literal(part, single_wildcard=True) for part in re.sub(r"\*+", "*", pattern).split("*")]
    flags = re.DOTALL | re.IGNORECASE
    if len(parts) == 1:
        search = re.compile(f"{_BOUNDARY}{parts[0]}{_BOUNDARY}", flags).search
        return lambda text: search(text) is not None
    # The leftmost start is a best start, since the first `*` can swallow everything up to a later one.
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1])
    match = re.compile(f"(?>.*?{_BOUNDARY}{parts[0]}){middle}.*?{parts[-1]}{_BOUNDARY}", flags).match
    return lambda text: match(text) is not None


def contains_word(text: str, literal: str) -> bool:
    """Whether `literal` stands in `text` between word boundaries; both are lower case already."""
    if not literal:
        return False
    at = text.find(literal)
    while at >= 0:
        if _is_boundary(text, at) and _is_boundary(text, at + len(literal)):
            return True
        at = text.find(literal, at + 1)
    return False


def _is_boundary(text: str, at: int) -> bool:
    if at == 0 or at == len(text):
        return True
    return text[at - 1] not in _WORD_CHARACTERS or text[at] not in _WORD_CHARACTERS


def _full_match(expression: str, flags: int) -> Matcher:
    match = re.compile(expression, flags).fullmatch
    return lambda value: match(value) is not None


def _expression(pattern: str, *, single_wildcard: bool) -> str:
    parts = [_literal(part, single_wildcard=single_wildcard) for part in re.sub(r"\*+", "*", pattern).split("*")]
    if len(parts) == 1:
        return parts[0]
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1])
    # The last part is anchored at the end, so the greedy `.*` needs one step back per character at most.
    return f"{parts[0]}{middle}.*{parts[-1]}"


def _literal(part: str, *, single_wildcard: bool) -> str:
    escaped = re.escape(part)
    return escaped.replace(r"\?", ".") if single_wildcard else escaped

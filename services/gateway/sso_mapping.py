"""From what a provider says of a person to an account. Spec: C-S API §SSO client login/authentication.

The templates are Synapse's: Jinja2 in a sandbox, `user` being the claims.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tessera.config.single_sign_on import AttributeRequirement, UserMapping, compile_template

MAX_EXTERNAL_ID_LENGTH = 500
MAX_NAME_LENGTH = 255
# No `=`, which begins an escape: two names would else become one.
_LOCALPART_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-/+")

Claims = Mapping[str, Any]


class UnfitClaims(Exception):
    """The claims do not make an account; the text is for people."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who signs in, by what the provider says.

    Attributes:
        external_id: who it is there, for ever.
        localpart: the name that a new account is to have; None if it has none.
        email: an address that the provider has proven, or does not say the contrary of.
    """

    external_id: str
    localpart: str | None
    display_name: str | None
    email: str | None


def meets(claims: Claims, requirements: Sequence[AttributeRequirement]) -> bool:
    """Whether the claims have all that is required of whoever signs in."""
    return all(_meets(claims, requirement) for requirement in requirements)


def read_person(claims: Claims, mapping: UserMapping) -> Person:
    """The person that the claims speak of.

    Raises:
        UnfitClaims: they do not say who it is, or a template cannot be filled in.
    """
    subject = claims.get(mapping.subject_claim)
    if isinstance(subject, bool) or not isinstance(subject, str | int) or not str(subject):
        raise UnfitClaims("The provider does not say who you are.")
    if len(str(subject)) > MAX_EXTERNAL_ID_LENGTH or not _is_storable(str(subject)):
        raise UnfitClaims("The provider's name for you cannot be used here.")
    email = _filled(mapping.email_template, claims)
    is_disproven = claims.get("email_verified") is False
    localpart = _filled(mapping.localpart_template, claims)
    name = _filled(mapping.display_name_template, claims)
    return Person(
        str(subject),
        None if localpart is None else localpart_of_text(localpart) or None,
        None if name is None or not _is_storable(name) else name[:MAX_NAME_LENGTH],
        None if email is None or is_disproven or "@" not in email else email,
    )


def localpart_of_text(text: str) -> str:
    """A valid localpart for any text. Spec: Appendices §User Identifiers, "Mapping from other character sets".

    Capitals are folded, bytes that may not stand in one become `=` and two hex digits; an underscore at the
    beginning too, as such names are for others.
    """
    mapped = "".join(
        chr(byte) if byte in _LOCALPART_BYTES else f"={byte:02x}" for byte in text.lower().encode("utf-8", "replace")
    )
    return f"=5f{mapped[1:]}" if mapped.startswith("_") else mapped


def _filled(template: str | None, claims: Claims) -> str | None:
    """A template filled in; None if there is nothing to it."""
    if template is None:
        return None
    try:
        return compile_template(template).render(user=claims).strip() or None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UnfitClaims("What the provider says of you does not make an account here.") from error


def _is_storable(text: str) -> bool:
    """Whether it is text to PostgreSQL: no NUL, no half of a pair of surrogates, which JSON may have."""
    return "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _meets(claims: Claims, requirement: AttributeRequirement) -> bool:
    if requirement.attribute not in claims:
        return False
    found = claims[requirement.attribute]
    values = found if isinstance(found, list) else [found]
    if requirement.value is not None:
        return requirement.value in values
    return not requirement.one_of or any(wanted in values for wanted in requirement.one_of)

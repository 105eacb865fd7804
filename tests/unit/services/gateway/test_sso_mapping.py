"""Claims become a person, and nothing else does."""

from typing import Any

import pytest

from matrixcore.identifiers import is_valid_localpart
from services.gateway.sso_mapping import UnfitClaims, localpart_of_text, meets, read_person
from tessera.config.single_sign_on import AttributeRequirement, UserMapping

MAPPING = UserMapping(
    localpart_template="{{ user.preferred_username }}",
    display_name_template="{{ user.given_name }} {{ user.family_name }}",
    email_template="{{ user.email }}",
)
CLAIMS: dict[str, Any] = {
    "sub": "7",
    "preferred_username": "Ann.Lee",
    "given_name": "Ann",
    "family_name": "Lee",
    "email": "ann@example.org",
}


def test_claims_fill_the_templates() -> None:
    person = read_person(CLAIMS, MAPPING)
    assert (person.external_id, person.localpart) == ("7", "ann.lee")
    assert (person.display_name, person.email) == ("Ann Lee", "ann@example.org")


def test_what_is_missing_is_nothing() -> None:
    person = read_person({"sub": "7", "email": None}, MAPPING)
    assert (person.localpart, person.display_name, person.email) == (None, None, None)
    assert read_person({"sub": "7", "preferred_username": "x"}, UserMapping()).localpart is None


def test_numbers_may_be_subjects() -> None:
    assert read_person({"id": 4711, "sub": "7"}, UserMapping(subject_claim="id")).external_id == "4711"


@pytest.mark.parametrize("subject", [None, "", True, [], {}, "x" * 501, 1.5, "a\x00", "\ud800"])
def test_whoever_has_no_subject_is_nobody(subject: object) -> None:
    with pytest.raises(UnfitClaims):
        read_person({**CLAIMS, "sub": subject}, MAPPING)


def test_an_address_that_was_not_proven_is_not_taken_over() -> None:
    assert read_person({**CLAIMS, "email_verified": False}, MAPPING).email is None
    assert read_person({**CLAIMS, "email_verified": True}, MAPPING).email == "ann@example.org"
    assert read_person({**CLAIMS, "email": "nonsense"}, MAPPING).email is None


def test_a_template_that_cannot_be_filled_in_makes_nobody() -> None:
    with pytest.raises(UnfitClaims):
        read_person(CLAIMS, UserMapping(localpart_template="{{ user.a.b.c }}"))
    with pytest.raises(UnfitClaims):
        read_person(CLAIMS, UserMapping(localpart_template="{{ user.__init__.__globals__ }}"))


@pytest.mark.parametrize(
    ("text", "localpart"),
    [
        ("Ann", "ann"),
        ("ann lee", "ann=20lee"),
        ("ann=20lee", "ann=3d20lee"),
        ("müller", "m=c3=bcller"),
        ("_ann", "=5fann"),
        ("ann@example.org", "ann=40example.org"),
        ("a:b", "a=3ab"),
    ],
)
def test_any_text_becomes_a_valid_localpart(text: str, localpart: str) -> None:
    assert localpart_of_text(text) == localpart
    assert is_valid_localpart(localpart)


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        (AttributeRequirement(attribute="groups"), True),
        (AttributeRequirement(attribute="groups", value="staff"), True),
        (AttributeRequirement(attribute="groups", one_of=("board", "staff")), True),
        (AttributeRequirement(attribute="groups", value="board"), False),
        (AttributeRequirement(attribute="groups", one_of=("board",)), False),
        (AttributeRequirement(attribute="org", value="example"), True),
        (AttributeRequirement(attribute="org", value="exam"), False),
        (AttributeRequirement(attribute="none"), False),
    ],
)
def test_requirements(requirement: AttributeRequirement, fits: bool) -> None:
    assert meets({"groups": ["staff", "it"], "org": "example"}, [requirement]) is fits

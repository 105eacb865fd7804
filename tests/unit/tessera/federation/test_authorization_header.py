"""X-Matrix headers as servers write them. Spec: S-S API §Request Authentication."""

import pytest

from tessera.federation.authorization_header import Authorization, InvalidAuthorization, parse_authorization

EXPECTED = Authorization("o.example:8448", "d.example", "ed25519:k1", "ab/+cd==")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "header",
    [
        'X-Matrix origin="o.example:8448",destination="d.example",key="ed25519:k1",sig="ab/+cd=="',
        "X-Matrix origin=o.example:8448,destination=d.example,key=ed25519:k1,sig=ab/+cd==",
        'x-matrix   sig="ab/+cd==" ,\tKEY="ed25519:k1", other=1,Destination=d.example ,origin="o.example:8448"',
        'X-Matrix origin="o.\\example:8448",destination="\\d.example",key="ed25519:k1",sig="ab/+cd=="',
    ],
)
def test_spellings(header: str) -> None:
    assert parse_authorization(header) == EXPECTED


def test_older_servers_name_no_destination() -> None:
    assert parse_authorization('X-Matrix origin=o.example,key="ed25519:k1",sig="ab"').destination is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer abc",
        "X-Matrix",
        "X-Matrix origin=o.example",
        'X-Matrix origin=o.example,key="ed25519:k1"',
        'X-Matrix origin=o.example,key="rsa:k1",sig=ab',
        'X-Matrix origin="o example",key="ed25519:k1",sig=ab',
        'X-Matrix origin=o.example,origin=p.example,key="ed25519:k1",sig=ab',
        'X-Matrix origin="o.example,key="ed25519:k1",sig=ab',
        "X-Matrix origin=o.example,key=ed25519:k1,sig=ab" + " " * 5000,
        "X-Matrix " + "a=" * 2000,
    ],
)
def test_what_is_none(header: str) -> None:
    with pytest.raises(InvalidAuthorization):
        parse_authorization(header)

"""What travels beside a record."""

import pytest

from tessera.bus.kafka.envelope import Malformed, UnknownVersion, check_version, make_headers


def test_headers_pass_their_own_check() -> None:
    check_version(make_headers(""))
    check_version(make_headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))


def test_a_trace_is_there_only_if_one_follows() -> None:
    assert [name for name, _value in make_headers("")] == ["v"]
    assert dict(make_headers("00-ab-cd-01"))["traceparent"] == b"00-ab-cd-01"


def test_a_newer_version_is_unknown() -> None:
    with pytest.raises(UnknownVersion, match="2"):
        check_version([("v", b"2")])


@pytest.mark.parametrize("headers", [[], [("x", b"1")], [("v", b"")], [("v", b"one")]])
def test_what_has_no_version_is_none_of_ours(headers: list[tuple[str, bytes]]) -> None:
    with pytest.raises(Malformed):
        check_version(headers)

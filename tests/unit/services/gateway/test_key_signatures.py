"""Signatures of uploaded keys. Spec: C-S API §Device keys, §One-time and fallback keys."""

from typing import Any

import pytest

from matrixcore.identifiers import UserId
from matrixcore.signing import SigningKey, sign_json
from services.gateway.key_signatures import InvalidSignature, check_signatures

ALICE = UserId("@alice:example.org")
KEY, OTHER = SigningKey("D", b"\x01" * 32), SigningKey("D", b"\x02" * 32)


def device_keys(public: SigningKey = KEY, signing: SigningKey = KEY) -> dict[str, Any]:
    bare = {
        "user_id": ALICE,
        "device_id": "D",
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {"ed25519:D": public.public_key_base64},
    }
    return sign_json(bare, ALICE, signing)


def one_time(signing: SigningKey = KEY) -> dict[str, Any]:
    return {"signed_curve25519:A": sign_json({"key": "abc"}, ALICE, signing), "curve25519:A": "plain"}


@pytest.mark.parametrize(
    "body",
    [
        {"device_keys": device_keys(), "one_time_keys": one_time(), "fallback_keys": one_time()},
        {"device_keys": {**device_keys(), "unsigned": {"name": "not covered"}}},
        {"one_time_keys": one_time()},
        {},
    ],
)
def test_what_the_device_signed_is_taken(body: dict[str, Any]) -> None:
    check_signatures(body, ALICE, "D", device_keys())


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"device_keys": device_keys(signing=OTHER)}, "device_keys"),
        ({"device_keys": {**device_keys(), "algorithms": []}}, "device_keys"),
        ({"device_keys": {**device_keys(), "signatures": {}}}, "device_keys"),
        ({"device_keys": {**device_keys(), "keys": {"ed25519:D": "short"}}}, "device_keys"),
        ({"device_keys": {**device_keys(), "keys": {}}}, "device_keys"),
        ({"one_time_keys": one_time(OTHER)}, "one_time_keys: signed_curve25519:A"),
        ({"one_time_keys": {"signed_curve25519:A": "plain"}}, "one_time_keys: signed_curve25519:A"),
        ({"fallback_keys": {"signed_curve25519:F": {"key": "abc"}}}, "fallback_keys: signed_curve25519:F"),
        # Another device key makes the one-time keys of the old one worthless.
        ({"device_keys": device_keys(OTHER, OTHER), "one_time_keys": one_time()}, "one_time_keys"),
    ],
)
def test_what_it_did_not_sign_is_refused(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSignature, match=named) as refusal:
        check_signatures(body, ALICE, "D", device_keys())
    assert (refusal.value.status, refusal.value.errcode) == (400, "M_INVALID_SIGNATURE")


def test_without_device_keys_nothing_can_be_checked() -> None:
    check_signatures({"one_time_keys": one_time(OTHER)}, ALICE, "D", None)

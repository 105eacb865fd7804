"""Signing of JSON and key files. Spec: Appendices §Signing JSON, §Cryptographic Test Vectors."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixcore.signing import (
    InvalidKey,
    SigningKey,
    decode_base64,
    encode_base64,
    encode_base64_urlsafe,
    read_signing_keys,
    sign_json,
    signing_key_ids,
    verify_json,
    verify_signature,
    write_signing_keys,
)

SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"
KEY = SigningKey("1", decode_base64(SEED))
KEYS = {"ed25519:1": KEY.public_key}

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8"))
objects = st.dictionaries(st.text(st.characters(codec="utf-8")), scalars | st.lists(scalars, max_size=3), max_size=5)


@pytest.mark.parametrize(
    ("plain", "encoded"),
    [(b"", ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"foob", "Zm9vYg"), (b"fooba", "Zm9vYmE")],
)
def test_base64_examples(plain: bytes, encoded: str) -> None:
    assert encode_base64(plain) == encoded
    assert decode_base64(encoded) == plain == decode_base64(encoded + "=" * (-len(encoded) % 4))


@given(st.binary())
def test_base64_of_both_alphabets_comes_back(data: bytes) -> None:
    assert decode_base64(encode_base64(data)) == data == decode_base64(encode_base64_urlsafe(data))


@pytest.mark.parametrize("text", ["a", "a b", "äöü", "Zg=x", "Z\ng"])
def test_bad_base64(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - binascii's own message
        decode_base64(text)


@pytest.mark.parametrize(
    ("value", "signature"),
    [
        ({}, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            {"one": 1, "two": "Two"},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_json_signing_vectors(value: dict[str, Any], signature: str) -> None:
    signed = sign_json(value, "domain", KEY)
    assert signed == {**value, "signatures": {"domain": {"ed25519:1": signature}}}
    assert verify_json(signed, "domain", KEYS)


def test_signatures_and_unsigned_are_not_covered_and_other_signatures_stay() -> None:
    other = SigningKey("2", b"2" * 32)
    once = sign_json({"a": 1, "unsigned": {"age": 1}}, "one", other)
    twice = sign_json(once, "domain", KEY)
    assert once["signatures"].keys() == {"one"}
    assert verify_json({**twice, "unsigned": {"age": 2}}, "domain", KEYS)
    assert verify_json(twice, "one", {other.key_id: other.public_key})
    assert signing_key_ids(twice, "domain") == ["ed25519:1"]


@given(objects, st.data())
def test_what_is_signed_verifies_and_no_changed_byte_does(value: dict[str, Any], data: st.DataObject) -> None:
    value.pop("signatures", None)
    value.pop("unsigned", None)
    signed = sign_json(value, "domain", KEY)
    assert verify_json(signed, "domain", KEYS)
    key = data.draw(st.text(st.characters(codec="utf-8")).filter(lambda key: key not in ("signatures", "unsigned")))
    item = data.draw(scalars)
    changed = {**signed, key: item}
    if key not in value or type(value[key]) is not type(item) or value[key] != item:
        assert not verify_json(changed, "domain", KEYS)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_flipped_bit_breaks_a_signature(message: bytes, data: st.DataObject) -> None:
    signature = KEY.sign(message)
    assert verify_signature(message, signature, KEY.public_key)
    position = data.draw(st.integers(0, len(message) * 8 - 1))
    changed = bytearray(message)
    changed[position // 8] ^= 1 << position % 8
    assert not verify_signature(bytes(changed), signature, KEY.public_key)
    raw = bytearray(decode_base64(signature))
    raw[data.draw(st.integers(0, 63))] ^= 1 << data.draw(st.integers(0, 7))
    assert not verify_signature(message, encode_base64(bytes(raw)), KEY.public_key)


@pytest.mark.parametrize(
    "signatures",
    [None, [], {}, {"domain": 1}, {"domain": {}}, {"domain": {"rsa:1": "Zg"}}, {"domain": {"ed25519:1": 5}},
     {"domain": {"ed25519:1": "??"}}, {"domain": {"ed25519:1": "Zg"}}, {"other": {"ed25519:1": KEY.sign(b"{}")}},
     {"domain": {"ed25519:9": KEY.sign(b"{}")}}],
)  # fmt: skip
def test_malformed_foreign_and_unknown_signatures_are_no_signatures(signatures: object) -> None:
    assert not verify_json({"signatures": signatures}, "domain", KEYS)


def test_unknown_keys_are_passed_over_but_a_wrong_known_one_is_not() -> None:
    signed = sign_json({"a": 1}, "domain", KEY)
    signed["signatures"]["domain"]["ed25519:policy_server"] = "nonsense"
    assert verify_json(signed, "domain", KEYS)
    assert not verify_json(signed, "domain", {**KEYS, "ed25519:policy_server": KEY.public_key})


def test_key_files_are_read_and_written_as_synapse_does() -> None:
    text = "ed25519 a_key YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA0\n"
    (key,) = read_signing_keys(text)
    assert (key.key_id, key.public_key) == ("ed25519:a_key", KEY.public_key)
    assert write_signing_keys([key]) == text
    assert key.public_key_base64 == "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"
    assert SEED not in repr(key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no signing key"),
        ("\n  \n", "no signing key"),
        ("rsa a_key Zg", "line 1"),
        (f"ed25519 a_key {SEED}\ned25519 b", "line 2"),
        ("ed25519 a_key Zg", "32 bytes"),
        ("ed25519 a_key ????", "not base64"),
        (f"ed25519 a-key {SEED}", "letters"),
    ],
)
def test_bad_key_files(text: str, message: str) -> None:
    with pytest.raises(InvalidKey, match=message):
        read_signing_keys(text)

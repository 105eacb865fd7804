"""Key documents: what is believed of them. Spec: S-S API §Publishing Keys."""

from typing import Any

import pytest

from matrixcore.identifiers import ServerName
from matrixcore.server_keys import MAX_VALIDITY_MS, InvalidKeyDocument, make_key_document, read_key_document
from matrixcore.signing import SigningKey, sign_json

NAME = ServerName("a.example")
KEY, OTHER, RETIRED = SigningKey("1", b"a" * 32), SigningKey("2", b"b" * 32), SigningKey("0", b"c" * 32)
NOW = 1_000_000


def document(**changes: Any) -> dict[str, Any]:
    """A document with changes, signed again."""
    made = make_key_document(
        NAME, [KEY], current={}, old={RETIRED.key_id: (RETIRED.public_key, 500)}, valid_until_ts=NOW + 5
    )
    made = {**made, **changes}
    del made["signatures"]
    return sign_json(made, made["server_name"], KEY, strict=False)


def test_what_is_made_can_be_read() -> None:
    made = make_key_document(
        NAME,
        [KEY, OTHER],
        current={"ed25519:elsewhere": RETIRED.public_key},
        old={RETIRED.key_id: (RETIRED.public_key, 500), KEY.key_id: (KEY.public_key, 1)},
        valid_until_ts=NOW + 5,
    )
    read = read_key_document(made, now_ms=NOW)
    assert read.server_name == NAME
    assert {key_id: (key.valid_until_ts, key.is_old) for key_id, key in read.keys.items()} == {
        KEY.key_id: (NOW + 5, False),
        OTHER.key_id: (NOW + 5, False),
        "ed25519:elsewhere": (NOW + 5, False),
        RETIRED.key_id: (500, True),
    }
    assert set(made["signatures"][NAME]) == {KEY.key_id, OTHER.key_id}


def test_no_key_is_believed_for_more_than_a_week() -> None:
    read = read_key_document(document(valid_until_ts=NOW * 10**6), now_ms=NOW)
    assert read.keys[KEY.key_id].valid_until_ts == NOW + MAX_VALIDITY_MS
    assert read.valid_until_ts == NOW * 10**6


@pytest.mark.parametrize(
    "changes",
    [
        {"server_name": "not a name"},
        {"valid_until_ts": "soon"},
        {"valid_until_ts": -1},
        {"valid_until_ts": 2**53},
        {"verify_keys": {}},
        {"verify_keys": [1]},
        {"verify_keys": {KEY.key_id: {"key": "AAAA"}}},
        {"verify_keys": {KEY.key_id: "AAAA"}},
        {"verify_keys": {KEY.key_id: {"key": OTHER.public_key_base64}}},
        {"verify_keys": {f"ed25519:{n}": {"key": KEY.public_key_base64} for n in range(201)}},
        {"old_verify_keys": {"ed25519:x": {"key": KEY.public_key_base64}}},
        {"old_verify_keys": None},
    ],
)
def test_what_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidKeyDocument):
        read_key_document(document(**changes), now_ms=NOW)


def test_a_key_that_it_does_not_publish_is_no_proof() -> None:
    made = document()
    forged = {**made, "signatures": sign_json({**made, "signatures": {}}, NAME, OTHER)["signatures"]}
    with pytest.raises(InvalidKeyDocument):
        read_key_document(forged, now_ms=NOW)
    with pytest.raises(InvalidKeyDocument):
        read_key_document({**made, "valid_until_ts": NOW + 6}, now_ms=NOW)


def test_other_algorithms_are_passed_over() -> None:
    verify = {KEY.key_id: {"key": KEY.public_key_base64}, "rsa:1": {"key": 5}}
    assert set(read_key_document(document(verify_keys=verify), now_ms=NOW).keys) == {KEY.key_id, RETIRED.key_id}

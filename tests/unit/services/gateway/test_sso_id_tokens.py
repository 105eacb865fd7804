"""An ID token counts only if it is the provider's, for this server, for this sign-in and for now."""

import base64
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from services.gateway.sso_id_tokens import Expected, InvalidIdToken, UnknownKey, check_id_token, read_keys

NOW = 1_700_000_000
EXPECTED = Expected("https://id.example.org", "matrix", "the-nonce", ("RS256", "ES256"), NOW)
CLAIMS: dict[str, Any] = {
    "iss": "https://id.example.org",
    "aud": "matrix",
    "sub": "7",
    "nonce": "the-nonce",
    "iat": NOW - 1,
    "exp": NOW + 300,
}


@pytest.fixture(scope="module")
def key() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "one"})


def sign(key: Any, algorithm: str = "RS256", kid: str | None = "one", **claims: Any) -> str:
    header = {"alg": algorithm} if kid is None else {"alg": algorithm, "kid": kid}
    filled = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(header, filled, key, algorithms=[algorithm])


def published(*keys: Any) -> list[Any]:
    return read_keys({"keys": [key.as_dict(private=False) for key in keys]})


def test_a_good_token_gives_its_claims(key: RSAKey) -> None:
    assert check_id_token(sign(key), published(key), EXPECTED) == CLAIMS
    assert check_id_token(sign(key, kid=None), published(key), EXPECTED)["sub"] == "7"
    both = sign(key, aud=["matrix", "other"], azp="matrix")
    assert check_id_token(both, published(key), EXPECTED)["sub"] == "7"
    curve = ECKey.generate_key("P-256", {"kid": "two"})
    assert check_id_token(sign(curve, "ES256", "two"), published(key, curve), EXPECTED)["sub"] == "7"


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example.org"},
        {"iss": None},
        {"iss": ["https://id.example.org"]},
        {"aud": "another"},
        {"aud": []},
        {"aud": None},
        {"aud": ["matrix", "other"]},
        {"azp": "other"},
        {"nonce": "another"},
        {"nonce": None},
        {"nonce": ["the-nonce"]},
        {"exp": NOW - 121},
        {"exp": None},
        {"exp": "never"},
        {"iat": NOW + 121},
        {"iat": None},
        {"nbf": NOW + 121},
        {"sub": None},
        {"sub": 7},
    ],
)
def test_wrong_claims_are_refused(key: RSAKey, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidIdToken):
        check_id_token(sign(key, **wrong), published(key), EXPECTED)


def test_clocks_may_differ_a_little(key: RSAKey) -> None:
    assert check_id_token(sign(key, exp=NOW - 60, iat=NOW + 60), published(key), EXPECTED)["sub"] == "7"


def test_an_unsigned_token_is_refused(key: RSAKey) -> None:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, CLAIMS)]
    with pytest.raises(InvalidIdToken):
        check_id_token(b".".join([*parts, b""]).decode(), published(key), EXPECTED)


def test_a_public_key_is_no_secret_to_sign_with(key: RSAKey) -> None:
    secret = OctKey.import_key(key.as_pem(private=False).decode().replace("-----", ""))
    forged = sign(secret, "HS256")
    for algorithms in (("RS256",), ("RS256", "HS256")):
        with pytest.raises(InvalidIdToken):
            check_id_token(
                forged, published(key), Expected("https://id.example.org", "matrix", "the-nonce", algorithms, NOW)
            )


def test_other_algorithms_and_keys_are_refused(key: RSAKey) -> None:
    with pytest.raises(InvalidIdToken, match="not allowed"):
        check_id_token(sign(key, "RS512"), published(key), EXPECTED)
    stranger = RSAKey.generate_key(2048, {"kid": "one"})
    with pytest.raises(UnknownKey, match="signature"):
        check_id_token(sign(stranger), published(key), EXPECTED)
    with pytest.raises(UnknownKey, match="no key"):
        check_id_token(sign(key, kid="two"), published(key), EXPECTED)
    head, body, signature = sign(key).split(".")
    with pytest.raises(InvalidIdToken):
        check_id_token(f"{head}.{body}.{signature[:-8]}AAAAAAAA", published(key), EXPECTED)


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "ä.b.c", "." * 10, "x" * 70_000])
def test_nonsense_is_refused(key: RSAKey, token: str) -> None:
    with pytest.raises(InvalidIdToken):
        check_id_token(token, published(key), EXPECTED)


def test_only_public_keys_for_signatures_are_read(key: RSAKey) -> None:
    good = key.as_dict(private=False)
    others = [{**good, "use": "enc"}, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA", "n": "!"}, "x", {"kty": "new"}]
    assert len(read_keys({"keys": [*others, good]})) == 1
    assert len(read_keys({"keys": [good] * 1000})) == 50
    with pytest.raises(InvalidIdToken):
        read_keys({"keys": {}})

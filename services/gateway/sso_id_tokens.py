"""Checks of ID tokens. Spec: OpenID Connect Core 1.0, §3.1.3.7; RFC 7515, RFC 7517, RFC 7519."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

# More than the clocks of two servers that are looked after differ.
SKEW_SECONDS = 120
MAX_TOKEN_BYTES = 64 << 10
MAX_KEYS = 50
# What providers sign with unless they say something else; OpenID Connect wants all to know it.
DEFAULT_ALGORITHMS = ("RS256",)
ALGORITHMS = frozenset(
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
)

PublicKey = RSAKey | ECKey | OKPKey


class InvalidIdToken(Exception):
    """The token proves nothing; the text is for logs."""


class UnknownKey(InvalidIdToken):
    """It was signed with a key that is not among those at hand: newer ones may have it."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say.

    Attributes:
        algorithms: the only ones that may have signed it.
        now_s: the time, in seconds since the epoch.
    """

    issuer: str
    client_id: str
    nonce: str
    algorithms: Sequence[str]
    now_s: int


def read_keys(key_set: Mapping[str, Any]) -> list[PublicKey]:
    """The keys of a JWK set that may have made signatures; those of kinds that are not known here are left out.

    Raises:
        InvalidIdToken: it is no JWK set.
    """
    given = key_set.get("keys")
    if not isinstance(given, list):
        raise InvalidIdToken("the JWK set has no keys")
    keys: list[PublicKey] = []
    for one in given[:MAX_KEYS]:
        # Secret keys are no provider's to publish: with them an HMAC could pass for a signature.
        if not isinstance(one, dict) or one.get("use", "sig") != "sig" or one.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        try:
            key = import_key(one)
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey):
            keys.append(key)
    return keys


def check_id_token(token: str, keys: Sequence[PublicKey], expected: Expected) -> dict[str, Any]:
    """The claims of a token that is for us, now, and for this sign-in.

    Raises:
        UnknownKey: no key at hand has the ID that it names.
        InvalidIdToken
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidIdToken("it is too long")
    claims = _verified_claims(token, keys, ALGORITHMS.intersection(expected.algorithms))
    registry = jwt.JWTClaimsRegistry(
        now=expected.now_s,
        leeway=SKEW_SECONDS,
        iss={"essential": True, "value": expected.issuer},
        aud={"essential": True, "value": expected.client_id},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
    )
    try:
        registry.validate(claims)
    except JoseError as error:
        raise InvalidIdToken(str(error)) from None
    nonce, party, audience = claims.get("nonce"), claims.get("azp"), claims["aud"]
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), expected.nonce.encode()):
        raise InvalidIdToken("it was made for another sign-in (nonce)")
    if (party is not None or (isinstance(audience, list) and len(audience) > 1)) and party != expected.client_id:
        raise InvalidIdToken("it was made for another client (azp)")
    return claims


def _verified_claims(token: str, keys: Sequence[PublicKey], algorithms: frozenset[str]) -> dict[str, Any]:
    try:
        header = jws.extract_compact(token.encode("ascii")).headers()
    except (JoseError, ValueError, TypeError) as error:
        raise InvalidIdToken(f"it is no token: {type(error).__name__}") from None
    if header.get("alg") not in algorithms:
        raise InvalidIdToken("it is signed in a way that is not allowed")
    key_id = header.get("kid")
    # A provider with one key need not give it a name.
    candidates = [key for key in keys if key_id is None or key.kid in (None, key_id)]
    if not candidates:
        raise UnknownKey("no key has the ID that it names")
    for key in candidates:
        try:
            return jwt.decode(token, key, algorithms=algorithms).claims
        except (JoseError, ValueError, TypeError):
            continue
    # Providers may give a new key the name of an old one.
    raise UnknownKey("its signature is wrong")

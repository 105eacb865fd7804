"""Ed25519 keys and signatures over JSON.

Spec: Appendices §Signing JSON, §Unpadded Base64. The signatures of events are in
`matrixcore.event_signing`, because those are redacted first.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from matrixcore.canonical_json import InvalidJson, encode_canonical_json

ALGORITHM = "ed25519"
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_VERSION = re.compile(r"[a-zA-Z0-9_]+")
_URL_SAFE = str.maketrans("-_", "+/")


class InvalidKey(ValueError):
    """A signing key, or the text of a key file, that cannot be read."""


def encode_base64(data: bytes) -> str:
    """Unpadded standard base64. Spec: Appendices §Unpadded Base64."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode("ascii")


def encode_base64_urlsafe(data: bytes) -> str:
    """Unpadded URL-safe base64. Spec: Appendices §URL-safe unpadded Base64."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64(text: str) -> bytes:
    """Decode standard or URL-safe base64, with or without padding.

    Raises:
        ValueError: a character outside the alphabets, or an impossible length.
    """
    stripped = text.rstrip("=").translate(_URL_SAFE)
    return base64.b64decode(stripped + "=" * (-len(stripped) % 4), validate=True)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private Ed25519 key with its version, independent of the server that uses it.

    `version` is what follows `ed25519:` in the key ID.
    """

    version: str
    seed: bytes = field(repr=False)
    key_id: str = field(init=False)
    public_key: bytes = field(init=False)
    _secret: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise InvalidKey("the version of a signing key must consist of letters, digits and underscores")
        if len(self.seed) != KEY_BYTES:
            raise InvalidKey(f"the seed of a signing key must have {KEY_BYTES} bytes")
        public_key, secret = crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "key_id", f"{ALGORITHM}:{self.version}")
        object.__setattr__(self, "public_key", public_key)
        object.__setattr__(self, "_secret", secret)

    @property
    def public_key_base64(self) -> str:
        return encode_base64(self.public_key)

    def sign(self, message: bytes) -> str:
        """The unpadded base64 of the signature of `message`."""
        return encode_base64(crypto_sign(message, self._secret)[:SIGNATURE_BYTES])


def read_signing_keys(text: str) -> list[SigningKey]:
    """Read a signing key file as Synapse writes it: `ed25519 <version> <seed in base64>`, one key a line.

    The first key signs.

    Raises:
        InvalidKey: with the number of the line; never with what stands in it.
    """
    keys: list[SigningKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 3 or words[0] != ALGORITHM:
            raise InvalidKey(f"line {number}: expected '{ALGORITHM} <version> <seed>'")
        try:
            keys.append(SigningKey(version=words[1], seed=decode_base64(words[2])))
        except InvalidKey as error:
            raise InvalidKey(f"line {number}: {error}") from None
        except ValueError:
            raise InvalidKey(f"line {number}: the seed is not base64") from None
    if not keys:
        raise InvalidKey("no signing key")
    return keys


def write_signing_keys(keys: Iterable[SigningKey]) -> str:
    """The text of a signing key file, readable by `read_signing_keys` and by Synapse."""
    return "".join(f"{ALGORITHM} {key.version} {encode_base64(key.seed)}\n" for key in keys)


def signed_bytes(value: Mapping[str, Any], *, strict: bool = True) -> bytes:
    """What the signatures of an object cover: its canonical JSON without `signatures` and `unsigned`."""
    bare = {key: item for key, item in value.items() if key != "signatures" and key != "unsigned"}
    return encode_canonical_json(bare, strict=strict)


def sign_json(value: Mapping[str, Any], signer: str, key: SigningKey, *, strict: bool = True) -> dict[str, Any]:
    """A copy of an object with one more signature.

    Args:
        value: what is signed; it is not changed, and its other signatures are kept.
        signer: the name under which the signature stands (a server name, a user ID).

    Spec: Appendices §Signing Details.
    """
    signature = key.sign(signed_bytes(value, strict=strict))
    return with_signature(value, signer, key.key_id, signature)


def with_signature(value: Mapping[str, Any], signer: str, key_id: str, signature: str) -> dict[str, Any]:
    """A copy of an object with the given signature added."""
    signatures = dict(value.get("signatures") or {})
    signatures[signer] = {**(signatures.get(signer) or {}), key_id: signature}
    return {**value, "signatures": signatures}


def signing_key_ids(value: Mapping[str, Any], signer: str) -> list[str]:
    """The IDs of the Ed25519 keys by which `signer` claims to have signed."""
    signatures = value.get("signatures")
    entry = signatures.get(signer) if isinstance(signatures, Mapping) else None
    if not isinstance(entry, Mapping):
        return []
    return [key_id for key_id in entry if key_id.startswith(ALGORITHM + ":")]


def verify_signature(message: bytes, signature: object, public_key: bytes) -> bool:
    """Whether `signature` (base64) is one of `message`; anything malformed is simply wrong."""
    if not isinstance(signature, str):
        return False
    try:
        raw = decode_base64(signature)
        if len(raw) != SIGNATURE_BYTES or len(public_key) != KEY_BYTES:
            return False
        crypto_sign_open(raw + message, public_key)
    except (ValueError, CryptoError):
        return False
    return True


def verify_json(value: Mapping[str, Any], signer: str, keys: Mapping[str, bytes], *, strict: bool = True) -> bool:
    """Whether `signer` has signed an object with at least one of the keys, and with none of them wrongly.

    Args:
        keys: key ID -> public key of those keys of the signer that are known and valid;
            signatures by any other key are passed over.

    Spec: Appendices §Checking for a Signature.
    """
    try:
        message = signed_bytes(value, strict=strict)
    except InvalidJson:
        return False
    return verify_signed_bytes(message, value, signer, keys)


def verify_signed_bytes(message: bytes, value: Mapping[str, Any], signer: str, keys: Mapping[str, bytes]) -> bool:
    """`verify_json` for an object whose signed bytes are known already."""
    usable = [key_id for key_id in signing_key_ids(value, signer) if key_id in keys]
    entry = value["signatures"][signer] if usable else {}
    return bool(usable) and all(verify_signature(message, entry[key_id], keys[key_id]) for key_id in usable)

"""Cross-signing keys and the signatures uploaded after the keys themselves.

What everybody may see (the owner's own signatures) is merged into the served bytes when it is uploaded; what only the
signer may see (user-signing signatures on other people's master keys) is read with the keys and merged by the caller.

Spec: C-S API §Cross-signing, §Key and signature security.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

Usage = Literal["master", "self_signing", "user_signing"]

LOCK_USER = "SELECT pg_advisory_xact_lock(hashtextextended($1, 7002))"

FIND_KEYS = "SELECT usage, key_id, content FROM accounts.cross_signing_keys WHERE user_id = $1"

SET_KEYS = """
INSERT INTO accounts.cross_signing_keys (user_id, usage, key_id, content)
SELECT $1, given.usage, given.key_id, given.content
FROM unnest($2::text[], $3::text[], $4::bytea[]) AS given (usage, key_id, content)
ON CONFLICT (user_id, usage) DO UPDATE
SET key_id = excluded.key_id, content = excluded.content, signed_content = NULL
"""

# The user-signing key is its owner's alone; $2 NULL is a reader without an account here (another server).
VISIBLE = """
SELECT k.user_id, k.usage, coalesce(k.signed_content, k.content), s.signer_key_id, s.signature
FROM accounts.cross_signing_keys k
LEFT JOIN accounts.key_signatures s
    ON k.usage = 'master' AND k.user_id <> $2 AND s.signer_user_id = $2
    AND s.target_user_id = k.user_id AND s.target_key_id = k.key_id
WHERE k.user_id = ANY($1::text[]) AND (k.usage <> 'user_signing' OR k.user_id = $2)
"""

MASTER_KEYS = """
SELECT user_id, key_id, content FROM accounts.cross_signing_keys
WHERE user_id = ANY($1::text[]) AND usage = 'master'
"""

SET_SIGNED = "UPDATE accounts.cross_signing_keys SET signed_content = $3 WHERE user_id = $1 AND usage = $2"

ADD_SIGNATURES = """
INSERT INTO accounts.key_signatures (target_user_id, target_key_id, signer_user_id, signer_key_id, signature)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT (target_user_id, target_key_id, signer_user_id, signer_key_id) DO UPDATE SET signature = excluded.signature
"""

OWN_SIGNATURES = """
SELECT target_key_id, signer_key_id, signature FROM accounts.key_signatures
WHERE target_user_id = $1 AND signer_user_id = $1 AND target_key_id = ANY($2::text[])
"""

DELETE_SIGNATURES_OF = """
DELETE FROM accounts.key_signatures
WHERE signer_user_id = $1 AND signer_key_id = ANY($2::text[])
RETURNING target_user_id, target_key_id
"""

DELETE_SIGNATURES_ON = (
    "DELETE FROM accounts.key_signatures WHERE target_user_id = $1 AND target_key_id = ANY($2::text[])"
)


@dataclass(frozen=True, slots=True)
class CrossSigningKey:
    """A key as its owner uploaded it; `key_id` is the unpadded base64 public key."""

    usage: Usage
    key_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class ServedCrossSigningKey:
    """A key as one reader sees it; `private_signatures` are those that this reader alone may see, by key ID."""

    user_id: UserId
    usage: Usage
    content: bytes
    private_signatures: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeySignature:
    """A signature on a device (`target_key_id` = device ID) or on a master key (its public key)."""

    target_user_id: UserId
    target_key_id: str
    signer_user_id: UserId
    signer_key_id: str
    signature: str


async def lock_user(tx: Transaction, user_id: UserId) -> None:
    """Hold off other changes of this user's cross-signing keys and signatures until the transaction ends."""
    await tx.execute(LOCK_USER, user_id)


async def find_keys(tx: Transaction, user_id: UserId) -> dict[Usage, CrossSigningKey]:
    """The user's keys as uploaded, by usage."""
    rows = await tx.fetch(FIND_KEYS, user_id)
    return {row[0]: CrossSigningKey(*row) for row in rows}


async def set_keys(tx: Transaction, user_id: UserId, keys: Sequence[CrossSigningKey]) -> None:
    """Store or replace keys; what was signed onto a replaced key is no longer served."""
    await tx.execute(
        SET_KEYS, user_id, [key.usage for key in keys], [key.key_id for key in keys], [key.content for key in keys]
    )


async def list_visible(
    tx: Transaction, user_ids: Sequence[UserId], reader: UserId | None
) -> list[ServedCrossSigningKey]:
    """The keys of these users as `reader` (None: another server) may see them, in one statement."""
    rows = await tx.fetch(VISIBLE, user_ids, reader)
    served: dict[tuple[str, str], ServedCrossSigningKey] = {}
    for user_id, usage, content, signer_key_id, signature in rows:
        key = served.get((user_id, usage))
        signatures = dict(key.private_signatures) if key is not None else {}
        if signer_key_id is not None:
            signatures[signer_key_id] = signature
        served[user_id, usage] = ServedCrossSigningKey(user_id, usage, content, signatures)
    return list(served.values())


async def list_master_keys(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, CrossSigningKey]:
    """The master keys of these users as uploaded."""
    rows = await tx.fetch(MASTER_KEYS, user_ids)
    return {row[0]: CrossSigningKey("master", row[1], row[2]) for row in rows}


async def set_signed(tx: Transaction, user_id: UserId, usage: Usage, content: bytes | None) -> None:
    """Replace what is served of a key; None means that nothing but the upload is left."""
    await tx.execute(SET_SIGNED, user_id, usage, content)


async def add_signatures(tx: Transaction, signatures: Sequence[KeySignature]) -> None:
    """Store signatures (no two with the same target and signer); a newer one replaces the older of the same signer."""
    ordered = sorted(signatures, key=lambda one: (one.target_user_id, one.target_key_id, one.signer_key_id))
    await tx.execute(
        ADD_SIGNATURES,
        [one.target_user_id for one in ordered],
        [one.target_key_id for one in ordered],
        [one.signer_user_id for one in ordered],
        [one.signer_key_id for one in ordered],
        [one.signature for one in ordered],
    )


async def list_own_signatures(
    tx: Transaction, user_id: UserId, target_key_ids: Sequence[str]
) -> dict[str, dict[str, str]]:
    """What the user's own keys signed of the user's own keys: target key ID -> signer key ID -> signature."""
    found: dict[str, dict[str, str]] = {}
    for target, signer, signature in await tx.fetch(OWN_SIGNATURES, user_id, target_key_ids):
        found.setdefault(target, {})[signer] = signature
    return found


async def delete_signatures_of(
    tx: Transaction, user_id: UserId, signer_key_ids: Sequence[str]
) -> list[tuple[UserId, str]]:
    """Forget what these keys (with their algorithm) of the user signed; answers the (user, key ID) that lost one."""
    rows = await tx.fetch(DELETE_SIGNATURES_OF, user_id, signer_key_ids)
    return [(row[0], row[1]) for row in rows]


async def delete_signatures_on(tx: Transaction, user_id: UserId, target_key_ids: Sequence[str]) -> None:
    """Forget all later signatures on these keys of the user, because the keys themselves are replaced."""
    await tx.execute(DELETE_SIGNATURES_ON, user_id, target_key_ids)

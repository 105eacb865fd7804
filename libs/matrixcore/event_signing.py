"""Whose signatures an event needs, checking them, and adding one.

Spec: S-S API §Signing Events, §Validating hashes and signatures on received events.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from matrixcore.canonical_json import encode_canonical_json
from matrixcore.event_hashes import essential_bytes
from matrixcore.events import Event
from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_user_id, server_of
from matrixcore.room_versions import EventIdFormat
from matrixcore.signing import SigningKey, verify_signed_bytes, with_signature
from matrixcore.verdicts import ACCEPTED, Accepted, Dropped

ServerKeys = Mapping[ServerName, Mapping[str, bytes]]  # server -> key ID -> public key


class SignedPart(NamedTuple):
    """All that checking an event's signatures takes, small enough to be sent to another process.

    Attributes:
        message: what signatures cover.
        signatures: the `signatures` of the event, of the servers that must have signed it.
    """

    message: bytes
    signatures: Mapping[ServerName, Any]


def required_signers(event: Event) -> list[ServerName]:
    """The servers whose signature an event must have, without duplicates.

    The sender's server, except for an invite that comes out of a third-party invite; in versions
    1 and 2 the server of the event ID; and that of `join_authorised_via_users_server`.
    """
    signers: dict[ServerName, None] = {}
    is_member = event.type == "m.room.member"
    if not (is_member and event.membership == "invite" and "third_party_invite" in event.content):
        signers[server_of(event.sender)] = None
    if event.rules.event_id_format is EventIdFormat.GIVEN:
        signers[server_of(event.event_id)] = None
    if is_member and event.rules.restricted_joins and "join_authorised_via_users_server" in event.content:
        with suppress(InvalidIdentifier):  # no user ID: the authorisation rules reject it
            signers[server_of(parse_user_id(event.content["join_authorised_via_users_server"]))] = None
    return list(signers)


def signed_part(event: Event) -> SignedPart:
    """What of an event is signed, and by whom it has to be."""
    signatures = event.fields["signatures"]
    return SignedPart(
        essential_bytes(event.fields, event.rules),
        {server: signatures.get(server, {}) for server in required_signers(event)},
    )


def check_signatures(part: SignedPart, keys: ServerKeys) -> Accepted | Dropped:
    """Check the signatures of every required signer.

    Args:
        keys: the public keys that are known and, from room version 5 on (`enforce_key_validity`),
            valid at the event's origin_server_ts. Signatures by other keys are passed over.
    """
    for server in part.signatures:
        if not verify_signed_bytes(part.message, {"signatures": part.signatures}, server, keys.get(server, {})):
            return Dropped(f"not signed by {server} with a known key")
    return ACCEPTED


def check_event_signatures(event: Event, keys: ServerKeys) -> Accepted | Dropped:
    """`check_signatures` of an event."""
    return check_signatures(signed_part(event), keys)


def sign_event(event: Event, server_name: ServerName, key: SigningKey) -> Event:
    """A copy of an event with this server's signature added; the ID stays.

    For invites and restricted joins, which two servers sign.
    """
    signature = key.sign(essential_bytes(event.fields, event.rules))
    return add_signature(event, server_name, key.key_id, signature)


def add_signature(event: Event, server_name: ServerName, key_id: str, signature: str) -> Event:
    """A copy of an event with a signature that another server has answered (a policy server's, say)."""
    fields = with_signature(event.fields, server_name, key_id, signature)
    pdu = encode_canonical_json(fields, strict=event.rules.strict_canonical_json)
    return replace(event, fields=fields, pdu=pdu)

"""Policy servers: which one a room uses, and whether an event has its signature.

Spec: S-S API §Policy Servers; C-S API §Policy Servers, m.room.policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixcore.event_hashes import essential_bytes
from matrixcore.events import Event
from matrixcore.identifiers import InvalidIdentifier, ServerName, StateKey, parse_server_name
from matrixcore.signing import KEY_BYTES, decode_base64, verify_signed_bytes

POLICY: Final[StateKey] = ("m.room.policy", "")
POLICY_KEY_ID: Final = "ed25519:policy_server"


@dataclass(frozen=True, slots=True)
class PolicyServer:
    """A room's policy server, and the key with which it recommends events for this room."""

    name: ServerName
    public_key: bytes


def parse_policy(content: Mapping[str, Any]) -> PolicyServer | None:
    """The policy server that an m.room.policy event names; None if it is not valid.

    Whether that server has anybody in the room, which it must, is for the caller to see.
    """
    via, keys = content.get("via"), content.get("public_keys")
    key = keys.get("ed25519") if isinstance(keys, Mapping) else None
    if not isinstance(key, str):
        return None
    try:
        name, public_key = parse_server_name(via), decode_base64(key)
    except (InvalidIdentifier, ValueError):
        return None
    return PolicyServer(name, public_key) if len(public_key) == KEY_BYTES else None


def find_policy_server(policy: Event | None, has_members: Callable[[ServerName], bool]) -> PolicyServer | None:
    """The policy server that a room uses; None if it uses none.

    Args:
        policy: what current state has at POLICY.
        has_members: whether a server has joined users in current state.
    """
    server = None if policy is None else parse_policy(policy.content)
    return server if server is not None and has_members(server.name) else None


def is_recommended(event: Event, server: PolicyServer | None) -> bool:
    """Whether an event may go on as far as the room's policy server is concerned: it has signed it, or is not asked."""
    if server is None or (event.type, event.state_key) == POLICY:
        return True
    keys = {POLICY_KEY_ID: server.public_key}
    return verify_signed_bytes(essential_bytes(event.fields, event.rules), event.fields, server.name, keys)

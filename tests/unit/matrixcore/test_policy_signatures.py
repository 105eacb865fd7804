"""Which policy server a room uses, and which events it has recommended. Spec: S-S API §Policy Servers."""

from typing import Any

import pytest

from matrixcore.event_building import build_event
from matrixcore.event_signing import add_signature, sign_event
from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.policy_servers import POLICY_KEY_ID, PolicyServer, find_policy_server, is_recommended, parse_policy
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey, encode_base64

HERE, POLICY = ServerName("here.org"), ServerName("policy.org")
KEY, POLICY_KEY = SigningKey("1", b"\x01" * 32), SigningKey("policy_server", b"\x02" * 32)
CONTENT = {"via": POLICY, "public_keys": {"ed25519": encode_base64(POLICY_KEY.public_key)}}
SERVER = PolicyServer(POLICY, POLICY_KEY.public_key)


def event_of(event_type: str = "m.room.message", state_key: str | None = None, content: Any = None) -> Event:
    return build_event(
        rules=ROOM_VERSIONS["11"],
        room_id=RoomId("!room:here.org"),
        sender=UserId("@alice:here.org"),
        event_type=event_type,
        state_key=state_key,
        content={} if content is None else content,
        origin_server_ts=1,
        depth=1,
        prev_events=(EventId("$prev"),),
        auth_events=(),
        server_name=HERE,
        signing_key=KEY,
    )


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"via": POLICY},
        {"via": 7, "public_keys": CONTENT["public_keys"]},
        {"via": "no server", "public_keys": CONTENT["public_keys"]},
        {"via": POLICY, "public_keys": "key"},
        {"via": POLICY, "public_keys": {"curve25519": "x"}},
        {"via": POLICY, "public_keys": {"ed25519": 7}},
        {"via": POLICY, "public_keys": {"ed25519": "too short"}},
        {"via": POLICY, "public_keys": {"ed25519": "!" * 43}},
    ],
)
def test_what_names_no_policy_server(content: dict[str, Any]) -> None:
    assert parse_policy(content) is None
    assert find_policy_server(event_of("m.room.policy", "", content), lambda _: True) is None


def test_a_policy_server_is_one_only_with_members() -> None:
    policy = event_of("m.room.policy", "", CONTENT)
    assert find_policy_server(policy, lambda name: name == POLICY) == SERVER
    assert find_policy_server(policy, lambda _: False) is None
    assert find_policy_server(None, lambda _: True) is None


def test_an_event_needs_the_signature_by_the_key_of_the_room() -> None:
    event = event_of()
    assert is_recommended(event, None)
    assert not is_recommended(event, SERVER)
    signed = sign_event(event, POLICY, POLICY_KEY)
    assert signed.event_id == event.event_id
    assert is_recommended(signed, SERVER)
    # Neither the server's own key recommends it, nor the right one under another name, nor another event's signature.
    assert not is_recommended(sign_event(event, POLICY, SigningKey("1", POLICY_KEY.seed)), SERVER)
    assert not is_recommended(sign_event(event, HERE, POLICY_KEY), SERVER)
    assert not is_recommended(sign_event(event, POLICY, SigningKey("policy_server", b"\x03" * 32)), SERVER)
    stolen = signed.fields["signatures"][POLICY][POLICY_KEY_ID]
    assert not is_recommended(add_signature(event_of(content={"a": 1}), POLICY, POLICY_KEY_ID, stolen), SERVER)


def test_the_policy_itself_is_not_asked_about() -> None:
    assert is_recommended(event_of("m.room.policy", "", {}), SERVER)
    assert not is_recommended(event_of("m.room.policy", "other", {}), SERVER)
    assert not is_recommended(event_of("m.room.policy", None, {}), SERVER)


def test_both_signatures_of_a_server_that_is_policy_server_and_sender() -> None:
    event = sign_event(event_of(), HERE, POLICY_KEY)
    assert set(event.fields["signatures"][HERE]) == {KEY.key_id, POLICY_KEY_ID}
    assert is_recommended(event, PolicyServer(HERE, POLICY_KEY.public_key))

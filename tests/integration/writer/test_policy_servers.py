"""Rooms with a policy server: it is asked before an event is sent, and about what comes without its signature.

Spec: S-S API §Policy Servers.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from peer_world import PeerWorld, peer_world
from remote_room import THERE, RemoteRoom, remote_room
from writer_world import ALICE, World

from matrixcore.event_signing import sign_event
from matrixcore.events import Event, load_event, parse_event
from matrixcore.identifiers import EventId, UserId
from matrixcore.policy_servers import POLICY_KEY_ID
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey, encode_base64
from services.federation_in.member_events import changes_of
from services.federation_in.receiving import InboxNames
from tessera.commands import AppendPdu, NewEvent
from tessera.federation.errors import PeerRefused, PeerUnreachable
from tessera.federation.policy_servers import PolicyServers
from tessera.http.errors import LimitExceeded, MatrixError
from tessera.room_changes import RoomChanges, Session
from tessera.storage.database import Database

POLICY_SERVER = "policy.org"
BOT = UserId(f"@bot:{POLICY_SERVER}")
POLICY_KEY = SigningKey("policy_server", b"\x07" * 32)
VERSION = "11"
ME = Session(ALICE, "PHONE")


@dataclass
class PolicyStub:
    """A policy server.

    Attributes:
        refuses: raised in place of an answer.
        asked: the events that it was asked about.
    """

    key: SigningKey = POLICY_KEY
    refuses: Exception | None = None
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def sign(self, said: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in said.items() if name != "path"}
        self.asked.append(fields)
        if self.refuses is not None:
            raise self.refuses
        event = sign_event(parse_event(fields, ROOM_VERSIONS[VERSION]), POLICY_SERVER, self.key)  # type: ignore[arg-type]
        return {POLICY_SERVER: {POLICY_KEY_ID: event.fields["signatures"][POLICY_SERVER][self.key.key_id]}}

    def types(self) -> list[str]:
        return [event["content"].get("body", event["type"]) for event in self.asked]


@pytest.fixture
async def peer(world: World, accounts: Database) -> AsyncIterator[PeerWorld]:
    async with world.writer(), peer_world(world, accounts) as made:
        yield made


@pytest.fixture
def stub(peer: PeerWorld) -> PolicyStub:
    made = PolicyStub()
    peer.peers.answers[POLICY_SERVER, "/_matrix/policy/v1/sign"] = made.sign
    return made


@pytest.fixture
def changes(peer: PeerWorld) -> RoomChanges:
    """As the gateway has it."""
    deps, world = peer.deps, peer.world
    client: Any = peer.peers
    return RoomChanges(
        world.commands,
        world.shards,
        deps.accounts,
        world.fanout,
        deps.clock,
        world.ids,
        policy=PolicyServers(client, world.shards),
    )


def policy(via: str = POLICY_SERVER, key: SigningKey = POLICY_KEY) -> NewEvent:
    content = {"via": via, "public_keys": {"ed25519": encode_base64(key.public_key)}}
    return NewEvent("m.room.policy", "", content)


@pytest.fixture
async def room(peer: PeerWorld, changes: RoomChanges) -> RemoteRoom:
    """A room of Alice's with Carla and the policy server's bot in it; the policy server is in use."""
    room = await remote_room(peer.world, VERSION)
    await room.deliver(room.join(BOT))
    event_id = await changes.append(room.room_id, ME, policy())
    assert event_id is not None
    await room.take_in(event_id)
    return room


def say(text: str) -> NewEvent:
    return NewEvent("m.room.message", None, {"msgtype": "m.text", "body": text})


async def send(changes: RoomChanges, room: RemoteRoom, text: str) -> EventId:
    event_id = await changes.append(room.room_id, ME, say(text), path=f"/send/{text}", txn_id=text)
    assert event_id is not None
    return event_id


async def stored(room: RemoteRoom, event_id: EventId) -> Event:
    row = await room.world.shards.of_room(room.room_id).fetchrow(
        "SELECT pdu, soft_failed, rejected FROM rooms.events WHERE room_id = $1 AND event_id = $2",
        room.room_id,
        event_id,
    )
    assert row is not None, "not stored"
    assert (row["soft_failed"], row["rejected"]) == (None, None)
    return load_event(row["pdu"], event_id, ROOM_VERSIONS[VERSION], room_id=room.room_id)


def is_signed(event: Event) -> bool:
    return POLICY_KEY_ID in event.fields["signatures"].get(POLICY_SERVER, {})


async def test_own_events_are_signed_before_they_are_sent(
    room: RemoteRoom, stub: PolicyStub, changes: RoomChanges
) -> None:
    assert stub.asked == [], "nobody is asked about m.room.policy itself"
    event_id = await send(changes, room, "hello")
    event = await stored(room, event_id)
    assert is_signed(event)
    assert set(event.fields["signatures"]) == {"here.org", POLICY_SERVER}
    assert await send(changes, room, "hello") == event_id, "the same request has the same answer"
    topic = await changes.append(room.room_id, ME, NewEvent("m.room.topic", "", {"topic": "signed"}))
    assert topic is not None
    assert is_signed(await stored(room, topic))
    assert (await room.current())["m.room.topic", ""] == topic
    texts = [
        record.event.client
        for records in (await room.world.stored_records()).values()
        for record in records
        if record.room_id == room.room_id and record.kind == 1
    ]
    assert sum(b'"hello"' in text for text in texts) == 1


@pytest.mark.parametrize(
    ("trouble", "status", "errcode", "message"),
    [
        (PeerRefused(400, "M_FORBIDDEN", "spam, spam"), 400, "M_FORBIDDEN", "spam, spam"),
        (PeerRefused(404, "M_NOT_FOUND", "Unknown room"), 404, "M_NOT_FOUND", "Unknown room"),
        (PeerRefused(500, "M_UNKNOWN", "oops"), 502, "M_UNKNOWN", "The room's policy server cannot be asked"),
        (PeerUnreachable("dead"), 502, "M_UNKNOWN", "The room's policy server cannot be asked"),
    ],
)
async def test_what_the_policy_server_refuses_is_not_sent(
    room: RemoteRoom,
    stub: PolicyStub,
    changes: RoomChanges,
    trouble: Exception,
    status: int,
    errcode: str,
    message: str,
) -> None:
    stub.refuses = trouble
    before = await room.extremities()
    with pytest.raises(MatrixError) as refused:
        await send(changes, room, "spam")
    assert (refused.value.status, refused.value.errcode, refused.value.message) == (status, errcode, message)
    assert await room.extremities() == before
    # The same request may succeed later.
    stub.refuses = None
    await stored(room, await send(changes, room, "spam"))


async def test_a_policy_server_may_ask_for_patience(room: RemoteRoom, stub: PolicyStub, changes: RoomChanges) -> None:
    stub.refuses = PeerRefused(429, "M_LIMIT_EXCEEDED", "slow down", 1_234)
    with pytest.raises(LimitExceeded) as refused:
        await send(changes, room, "fast")
    assert refused.value.body["retry_after_ms"] == 1_234


async def test_a_signature_by_another_key_does_not_count(
    room: RemoteRoom, stub: PolicyStub, changes: RoomChanges
) -> None:
    stub.key = SigningKey("policy_server", b"\x08" * 32)
    with pytest.raises(MatrixError) as refused:
        await send(changes, room, "forged")
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")


async def test_a_dead_policy_server_can_be_dismissed(room: RemoteRoom, stub: PolicyStub, changes: RoomChanges) -> None:
    stub.refuses = PeerUnreachable("dead")
    await changes.append(room.room_id, ME, NewEvent("m.room.policy", "", {}))
    assert not is_signed(await stored(room, await send(changes, room, "free")))
    assert stub.asked == []


async def test_a_server_without_members_is_no_policy_server(
    room: RemoteRoom, stub: PolicyStub, changes: RoomChanges
) -> None:
    async def append(new: NewEvent) -> Event:
        event_id = await changes.append(room.room_id, ME, new)
        assert event_id is not None
        return await room.take_in(event_id)

    await append(policy(via="elsewhere.org"))
    assert not is_signed(await append(say("free")))
    await append(policy())
    assert is_signed(await append(say("signed")))
    left = room.make("m.room.member", {"membership": "leave"}, sender=BOT, state_key=BOT)
    await room.deliver(with_policy(left))
    assert not is_signed(await append(say("free again")))


def with_policy(event: Event) -> Event:
    """An event that its server had signed."""
    return sign_event(event, POLICY_SERVER, POLICY_KEY)  # type: ignore[arg-type]


async def receive(peer: PeerWorld, room: RemoteRoom, *events: Event) -> None:
    """As federation_in takes them in: stored and named."""
    inbox_ids = await room.put(*events)
    names = InboxNames(peer.world.shards.partition_of(room.room_id), room.room_id, tuple(inbox_ids))
    await peer.intake.naming.name([names])

    async def is_settled() -> bool:
        return not await room.inbox_states()

    await peer.until(is_settled)


async def verdict(room: RemoteRoom, event: Event) -> str | None:
    row = await room.row(event)
    assert row is not None, "not stored"
    assert row["rejected"] is None
    soft_failed: str | None = row["soft_failed"]
    return soft_failed


async def test_what_comes_signed_is_not_asked_about(peer: PeerWorld, room: RemoteRoom, stub: PolicyStub) -> None:
    event = with_policy(room.message("signed"))
    await receive(peer, room, event)
    assert await verdict(room, event) is None
    assert stub.asked == []


async def test_what_comes_unsigned_is_asked_about(peer: PeerWorld, room: RemoteRoom, stub: PolicyStub) -> None:
    first, second = room.message("one"), room.message("two")
    await receive(peer, room, first, second)
    assert [await verdict(room, event) for event in (first, second)] == [None, None]
    assert sorted(stub.types()) == ["one", "two"]
    assert is_signed(await stored(room, first.event_id)), "others are told of it with the signature"


@pytest.mark.parametrize(
    "refuses", [PeerRefused(400, "M_FORBIDDEN", "spam"), PeerUnreachable("dead"), "another key"], ids=str
)
async def test_what_is_not_recommended_is_soft_failed(
    peer: PeerWorld, room: RemoteRoom, stub: PolicyStub, refuses: Exception | str
) -> None:
    if isinstance(refuses, Exception):
        stub.refuses = refuses
    else:
        stub.key = SigningKey("policy_server", b"\x08" * 32)
    before = await room.extremities()
    spam = room.message("spam")
    topic = room.topic("spam too")
    await receive(peer, room, spam, topic)
    for event in (spam, topic):
        assert await verdict(room, event) == "the room's policy server has not signed it"
    assert await room.extremities() == before
    assert ("m.room.topic", "") not in await room.current()
    # What stands on top of it is judged for itself, by the state that has it.
    above = with_policy(room.message("fine"))
    await receive(peer, room, above)
    assert await verdict(room, above) is None
    assert stub.types().count("fine") == 0


async def test_an_event_waits_for_one_that_is_asked_about(peer: PeerWorld, room: RemoteRoom, stub: PolicyStub) -> None:
    """A signed event above an unsigned one, together and apart."""
    unsigned = room.message("unsigned")
    signed = with_policy(room.message("signed"))
    await receive(peer, room, signed, unsigned)
    assert [await verdict(room, event) for event in (unsigned, signed)] == [None, None]
    assert stub.types() == ["unsigned"]


async def test_what_a_dead_process_asked_is_asked_by_another(
    peer: PeerWorld, room: RemoteRoom, stub: PolicyStub
) -> None:
    event = room.message("left over")
    await room.deliver(event)  # named by nobody who listens
    assert await room.inbox_states() == ["unsigned"]
    names = await peer.intake.checks.ask_for(room.room_id)
    assert names is not None
    assert await peer.intake.checks.ask_for(room.room_id) is None
    await room.name(names.inbox_ids)
    assert await verdict(room, event) is None
    assert stub.types() == ["left over"]


async def test_who_enters_by_this_server_is_asked_about(peer: PeerWorld, room: RemoteRoom, stub: PolicyStub) -> None:
    """The join of another server's user, accepted by send_join."""
    dora = UserId(f"@dora:{THERE}")
    join = room.join(dora)
    await changes_of(peer.deps).submit(room.room_id, dora, AppendPdu(join.pdu))
    assert is_signed(await stored(room, join.event_id))
    stub.refuses = PeerRefused(400, "M_FORBIDDEN", "not you")
    evil = UserId("@evil:there.org")
    with pytest.raises(MatrixError, match="not you"):
        await changes_of(peer.deps).submit(room.room_id, evil, AppendPdu(room.join(evil).pdu))

"""Events as clients get them. Spec: C-S API §Room event format."""

from typing import Any

import orjson

from matrixcore.event_building import build_event
from matrixcore.events import Event, client_form
from matrixcore.identifiers import EventId, RoomId, ServerName, UserId
from matrixcore.room_versions import ROOM_VERSIONS
from matrixcore.signing import SigningKey
from tessera.event_serving import Reader, serve_event, serve_events, serve_live_event
from tessera.records import EventBody, OrderKey
from tessera.room_visibility import MembershipHistory
from tessera.storage.room_reads.events import EventRow
from tessera.storage.room_reads.members import MembershipStep
from tessera.storage.room_reads.relations import Bundle

ALICE, BOB = UserId("@alice:here.org"), UserId("@bob:here.org")
ROOM = RoomId("!room:here.org")
RULES = ROOM_VERSIONS["11"]
NOW = 1_700_000_010_000
SENT = 1_700_000_000_000


def event(content: dict[str, Any], event_type: str = "m.room.message", state_key: str | None = None) -> Event:
    return build_event(
        rules=RULES,
        room_id=ROOM,
        sender=ALICE,
        event_type=event_type,
        state_key=state_key,
        content=content,
        origin_server_ts=SENT,
        depth=1,
        prev_events=(),
        auth_events=(),
        server_name=ServerName("here.org"),
        signing_key=SigningKey("1", b"\x02" * 32),
    )


def row(made: Event, at: int = 10, **fields: Any) -> EventRow:
    values: dict[str, Any] = {
        "event_id": made.event_id,
        "anchor": at,
        "sub": 0,
        "type": made.type,
        "state_key": made.state_key,
        "sender": made.sender,
        "origin_server_ts": made.origin_server_ts,
        "membership": None,
        "history_visibility": "shared",
        "sender_device": "PHONE",
        "txn_id": "txn 1",
        "replaces_state": None,
        "redacted_by": None,
        "relates_to": None,
        "rel_type": None,
        "thread_root": None,
        "pdu": made.pdu,
        "previous_pdu": None,
        "redaction_pdu": None,
    }
    return EventRow(**{**values, **fields})


def served(stored: EventRow, user_id: UserId = ALICE, device: str = "PHONE", **more: Any) -> dict[str, Any]:
    reply: dict[str, Any] = orjson.loads(serve_event(stored, RULES, Reader(user_id, device, NOW), room_id=ROOM, **more))
    return reply


def test_an_event_has_the_client_s_fields_and_no_others() -> None:
    made = event({"body": "hi"})
    reply = served(row(made), BOB)
    assert reply == {
        "content": {"body": "hi"},
        "event_id": made.event_id,
        "origin_server_ts": SENT,
        "room_id": ROOM,
        "sender": ALICE,
        "type": "m.room.message",
        "unsigned": {"age": NOW - SENT},
    }


def test_the_transaction_id_is_for_the_sending_device_only() -> None:
    stored = row(event({"body": "hi"}))
    assert served(stored)["unsigned"]["transaction_id"] == "txn 1"
    assert "transaction_id" not in served(stored, device="LAPTOP")["unsigned"]
    assert "transaction_id" not in served(stored, BOB)["unsigned"]


def test_state_shows_what_it_replaced() -> None:
    old, new = event({"name": "Old"}, "m.room.name", ""), event({"name": "New"}, "m.room.name", "")
    stored = row(new, replaces_state=old.event_id, previous_pdu=old.pdu)
    unsigned = served(stored)["unsigned"]
    assert unsigned["prev_content"] == {"name": "Old"}
    assert unsigned["replaces_state"] == old.event_id


def test_a_redacted_event_shows_its_redaction() -> None:
    made = event({})
    redaction = event({"redacts": made.event_id, "reason": "spam"}, "m.room.redaction")
    reply = served(row(made, redacted_by=redaction.event_id, redaction_pdu=redaction.pdu))
    because = reply["unsigned"]["redacted_because"]
    assert (because["event_id"], because["content"]["reason"]) == (redaction.event_id, "spam")
    assert because["redacts"] == because["content"]["redacts"] == made.event_id


def test_the_membership_is_the_reader_s_at_the_event() -> None:
    steps = [
        MembershipStep(OrderKey(5), "join", EventId("$a")),
        MembershipStep(OrderKey(10), "leave", EventId("$b")),
    ]
    history = MembershipHistory(BOB, steps)
    reader = Reader(BOB, None, NOW, history)
    before, at = row(event({}), at=9), row(event({"membership": "leave"}, "m.room.member", BOB), at=10)
    replies = [orjson.loads(orjson.dumps(one)) for one in serve_events([before, at], RULES, reader, room_id=None)]
    assert [reply["unsigned"]["membership"] for reply in replies] == ["join", "leave"]
    assert "room_id" not in replies[0]


def test_relations_are_bundled() -> None:
    made, edit, reply_in_thread = event({"body": "a"}), event({"body": "b"}), event({"body": "c"})
    bundle = Bundle(row(edit), [EventId("$ref")], row(reply_in_thread, txn_id=None), 3, False)
    relations = served(row(made), BOB, bundle=bundle)["unsigned"]["m.relations"]
    assert relations["m.replace"]["event_id"] == edit.event_id
    assert relations["m.reference"] == {"chunk": [{"event_id": "$ref"}]}
    thread = relations["m.thread"]
    assert (thread["count"], thread["current_user_participated"]) == (3, False)
    assert thread["latest_event"]["event_id"] == reply_in_thread.event_id
    own = served(row(made), ALICE, bundle=bundle)["unsigned"]["m.relations"]["m.thread"]
    assert own["current_user_participated"] is True  # the root's sender


def test_an_event_out_of_a_record_is_served_alike() -> None:
    made = event({"body": "hi"})
    body = EventBody(
        made.event_id, made.type, None, ALICE, SENT, client_form(made), sender_device="PHONE", txn_id="txn 1"
    )
    live = orjson.loads(serve_live_event(body, Reader(ALICE, "PHONE", NOW), room_id=ROOM))
    assert live == served(row(made))

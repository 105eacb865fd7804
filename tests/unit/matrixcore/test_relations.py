"""Relations between events: what parses, threads, edits, annotations."""

from dataclasses import replace

import pytest

from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, UserId
from matrixcore.relations import (
    BUNDLED_REL_TYPES,
    Relation,
    annotation_identity,
    check_annotation,
    check_edit,
    find_thread,
    may_start_thread,
    newest_edit,
    parse_relation,
    thread_root,
)
from matrixcore.room_versions import ROOM_VERSIONS


def related(rel_type, event_id, **more):
    return {"m.relates_to": {"rel_type": rel_type, "event_id": event_id, **more}}


def event(event_id, content, *, sender="@a:hs", event_type="m.room.message", state_key=None, room="!r:hs", at=1):
    return Event(
        event_id=EventId(event_id),
        room_id=RoomId(room),
        type=event_type,
        state_key=state_key,
        sender=UserId(sender),
        content=content,
        origin_server_ts=at,
        depth=1,
        prev_events=(),
        auth_events=(),
        redacts=None,
        fields={},
        pdu=b"",
        rules=ROOM_VERSIONS["11"],
    )


def test_a_threaded_reply_has_both_parts():
    content = related("m.thread", "$root", **{"m.in_reply_to": {"event_id": "$last"}, "is_falling_back": True})
    assert parse_relation(content) == Relation("m.thread", EventId("$root"), None, True, EventId("$last"))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"m.relates_to": "x"},
        related(5, "$a"),
        related("", "$a"),
        related("x" * 256, "$a"),
        related("m.thread", "a"),
        related("m.thread", None),
        related("m.thread", "$" + "x" * 255),
        {"m.relates_to": {"m.in_reply_to": "$a"}},
        {"m.relates_to": {"m.in_reply_to": {"event_id": 1}}},
    ],
)
def test_what_does_not_fit_the_schema_is_no_relation(content):
    assert parse_relation(content) is None


def test_a_plain_reply_survives_a_broken_relation():
    content = {"m.relates_to": {"rel_type": 5, "m.in_reply_to": {"event_id": "$a"}}}
    assert parse_relation(content) == Relation(None, None, None, False, EventId("$a"))


def test_threads_are_found_within_three_hops():
    parents = {
        EventId("$reply"): parse_relation(related("m.thread", "$root")),
        EventId("$reaction"): parse_relation(related("m.annotation", "$reply")),
        EventId("$reference"): parse_relation(related("m.reference", "$reaction")),
        EventId("$loop"): parse_relation(related("m.reference", "$loop")),
        EventId("$plain"): parse_relation({"m.relates_to": {"m.in_reply_to": {"event_id": "$reply"}}}),
    }
    found = {name: find_thread(relation, parents.get) for name, relation in parents.items()}
    assert found == {"$reply": "$root", "$reaction": "$root", "$reference": "$root", "$loop": None, "$plain": None}
    assert find_thread(parse_relation(related("m.reference", "$reference")), parents.get) is None
    assert find_thread(None, parents.get) is None
    assert thread_root(parents["$reply"]) == "$root"
    assert thread_root(parents["$reaction"]) is None


def test_what_may_start_a_thread():
    assert may_start_thread(None)
    assert may_start_thread(parse_relation({"m.relates_to": {"m.in_reply_to": {"event_id": "$a"}}}))
    assert not may_start_thread(parse_relation(related("m.thread", "$a")))


ORIGINAL = event("$original", {"body": "x"})
EDIT = event("$edit", {"body": "* y", "m.new_content": {"body": "y"}, **related("m.replace", "$original")})


@pytest.mark.parametrize(
    ("original", "edit"),
    [
        (ORIGINAL, replace(EDIT, sender=UserId("@b:hs"))),
        (ORIGINAL, replace(EDIT, type="m.sticker")),
        (ORIGINAL, replace(EDIT, room_id=RoomId("!other:hs"))),
        (ORIGINAL, replace(EDIT, state_key="")),
        (replace(ORIGINAL, state_key=""), EDIT),
        (replace(ORIGINAL, content=related("m.replace", "$first")), EDIT),
        (ORIGINAL, replace(EDIT, content=related("m.replace", "$original"))),
        (ORIGINAL, replace(EDIT, content={**EDIT.content, "m.new_content": "y"})),
        (ORIGINAL, replace(EDIT, content={**EDIT.content, **related("m.replace", "$another")})),
        (ORIGINAL, replace(EDIT, content={"m.new_content": {}})),
    ],
)
def test_invalid_edits(original, edit):
    assert check_edit(ORIGINAL, EDIT) is None
    assert check_edit(original, edit) is not None


def test_an_encrypted_edit_shows_no_new_content():
    original = event("$original", {"ciphertext": "x"}, event_type="m.room.encrypted")
    edit = event("$edit", related("m.replace", "$original"), event_type="m.room.encrypted")
    assert check_edit(original, edit) is None
    threaded = replace(original, content=related("m.thread", "$root"))
    assert check_edit(threaded, edit) is None


def test_the_newest_edit():
    edits = [event("$b", {}, at=5), event("$c", {}, at=5), event("$z", {}, at=4)]
    assert newest_edit(edits).event_id == "$c"
    assert newest_edit([]) is None


def test_annotations():
    assert annotation_identity("m.reaction", related("m.annotation", "$a", key="👍")) == ("$a", "m.reaction", "👍")
    assert annotation_identity("m.reaction", related("m.annotation", "$a")) is None
    assert annotation_identity("m.reaction", related("m.thread", "$a", key="x")) is None
    assert check_annotation(parse_relation(related("m.annotation", "$a"))) is not None
    assert check_annotation(parse_relation(related("m.replace", "$a"))) is not None
    assert check_annotation(parse_relation(related("m.thread", "$a"))) is None
    assert "m.annotation" not in BUNDLED_REL_TYPES

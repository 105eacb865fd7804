"""Typing and presence as a process hears of them. Spec: C-S API §Typing notifications, §Presence."""

from matrixcore.identifiers import RoomId, UserId
from services.sync.ephemeral import PresenceBoard, TypingBoard
from tessera.clock import FakeClock
from tessera.fanout import PresenceChange, TypingChange

ROOM = RoomId("!room:here.org")
ALICE, BOB = UserId("@alice:here.org"), UserId("@bob:here.org")


def test_only_changes_of_the_list_are_news() -> None:
    board = TypingBoard(FakeClock())
    assert not board.apply(TypingChange(ROOM, ALICE, 0))
    assert board.apply(TypingChange(ROOM, ALICE, 1_000))
    seen = board.count
    assert not board.apply(TypingChange(ROOM, ALICE, 1_000))
    assert board.changed_since(seen, [ROOM]) == {}
    assert board.apply(TypingChange(ROOM, BOB, 1_000))
    assert board.changed_since(seen, [ROOM]) == {ROOM: [ALICE, BOB]}
    assert board.changed_since(None, [ROOM]) == {ROOM: [ALICE, BOB]}


def test_typing_expires() -> None:
    clock = FakeClock()
    board = TypingBoard(clock)
    board.apply(TypingChange(ROOM, ALICE, 1_000))
    seen = board.count
    clock.shift(0.5)
    assert board.expire() == []
    clock.shift(0.6)
    assert board.expire() == [ROOM]
    assert board.is_quiet
    assert board.changed_since(seen, [ROOM]) == {ROOM: []}
    assert board.changed_since(None, [ROOM]) == {}


def test_the_newest_presence_of_each_user() -> None:
    board = PresenceBoard()
    board.apply(PresenceChange(ALICE, "online", None, 1, True))
    seen = board.count
    board.apply(PresenceChange(BOB, "online", None, 1, True))
    board.apply(PresenceChange(BOB, "unavailable", "tea", 1, False))
    assert [(one.user_id, one.presence) for one in board.changed_since(seen)] == [(BOB, "unavailable")]
    assert [one.user_id for one in board.changed_since(0)] == [BOB, ALICE]

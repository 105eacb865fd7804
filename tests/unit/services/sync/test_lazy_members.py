"""The lazy-loading memory belongs to a token. Spec: C-S API §Lazy-loading room members."""

from matrixcore.identifiers import RoomId, UserId
from services.sync.lazy_members import MAX_MEMBERS_PER_ROOM, MAX_TOKENS, NOTHING, LazyMemory, with_members

ROOM = RoomId("!room:here.org")
ALICE, BOB = UserId("@alice:here.org"), UserId("@bob:here.org")


def test_two_answers_to_one_token_do_not_disturb_each_other() -> None:
    memory = LazyMemory()
    memory.keep(ALICE, "D", "t1", with_members(NOTHING, ROOM, [ALICE]))
    first = with_members(memory.at(ALICE, "D", "t1"), ROOM, [BOB])
    memory.keep(ALICE, "D", "t2", first)
    assert memory.at(ALICE, "D", "t1")[ROOM] == {ALICE}
    assert memory.at(ALICE, "D", "t2")[ROOM] == {ALICE, BOB}
    assert memory.at(ALICE, "other", "t2") == NOTHING


def test_the_memory_is_bounded() -> None:
    memory = LazyMemory()
    seen = with_members(NOTHING, ROOM, [ALICE])
    for number in range(MAX_TOKENS + 1):
        memory.keep(ALICE, "D", str(number), seen)
    assert memory.at(ALICE, "D", "0") == NOTHING
    many = [UserId(f"@u{number}:here.org") for number in range(MAX_MEMBERS_PER_ROOM)]
    crowded = with_members(seen, ROOM, many)
    assert len(crowded[ROOM]) == MAX_MEMBERS_PER_ROOM

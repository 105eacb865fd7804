"""What clients want of a room's state. Spec: MSC4186 §RequiredStateRequest."""

from services.sync.sliding.required_state import MEMBER, Element, RequiredState, combined, from_include

EVERYTHING = Element(None, None)
TOPIC = Element("m.room.topic", "")


def test_wildcards_and_exclusions() -> None:
    wish = from_include([Element("m.room.create", ""), Element("m.widget", None)])
    assert wish.matches("m.room.create", "")
    assert wish.matches("m.widget", "any")
    assert not wish.matches("m.room.create", "x")
    assert not wish.matches("m.room.topic", "")
    but = from_include([EVERYTHING], [Element("m.room.create", "")])
    assert not but.matches("m.room.create", "")
    assert but.matches("m.room.create", "x")
    assert from_include([Element(None, "@a:b")]).matches("anything", "@a:b")


def test_lazy_members_are_not_matched_by_wildcards() -> None:
    wish = from_include([EVERYTHING, Element(MEMBER, "@me:here")], lazy_members=True)
    assert wish.matches(MEMBER, "@me:here")
    assert not wish.matches(MEMBER, "@other:here")
    assert wish.matches("m.room.topic", "")
    assert not wish.wants_all_members
    assert from_include([EVERYTHING]).wants_all_members
    assert from_include([Element(MEMBER, None)]).wants_all_members


def test_a_combination_gives_what_any_of_its_parts_gives() -> None:
    lazy = from_include([EVERYTHING], [TOPIC], lazy_members=True)
    both = combined((lazy, from_include([TOPIC])))
    assert both.matches("m.room.topic", "")
    assert not both.matches(MEMBER, "@a:b")
    assert both.lazy_members
    all_members = combined((lazy, from_include([Element(MEMBER, None)])))
    assert all_members.matches(MEMBER, "@a:b")
    assert all_members.wants_all_members
    assert combined((lazy,)) is lazy
    assert combined(()) == RequiredState()


def test_what_is_wanted_beyond_another_wish() -> None:
    small, large = from_include([TOPIC]), from_include([TOPIC, Element("m.room.name", "")])
    assert large.beyond(small) == from_include([Element("m.room.name", "")])
    assert not small.beyond(large).atoms

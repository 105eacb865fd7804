"""What hot rooms remember of resolutions. DESIGN section 3."""

from matrixcore.identifiers import EventId, StateKey
from matrixcore.state_res import AuthEdges
from services.rooms.resolutions import MAX_KEYS, MAX_NODES, MAX_REMEMBERED, Resolutions, mark_of

TOPIC: StateKey = ("m.room.topic", "")
NAME: StateKey = ("m.room.name", "")


def marks(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def test_a_state_has_one_mark_whatever_way_it_came_about() -> None:
    a, b = EventId("$a"), EventId("$b")
    assert mark_of(TOPIC, None) == 0
    assert mark_of(TOPIC, a) == mark_of(("m.room.topic", ""), EventId("$a"))
    assert len({mark_of(TOPIC, a), mark_of(TOPIC, b), mark_of(NAME, a), mark_of(NAME, b)}) == 4
    assert mark_of(TOPIC, a) + mark_of(NAME, b) != mark_of(TOPIC, b) + mark_of(NAME, a)


def test_the_least_used_results_go() -> None:
    known = Resolutions()
    for number in range(MAX_REMEMBERED):
        known.keep(marks(number), {TOPIC: EventId(f"${number}")})
    assert known.find(marks(0)) == {TOPIC: "$0"}
    size = known.size
    known.keep(marks(-5), {TOPIC: None})
    assert known.find(marks(-5)) == {TOPIC: None}
    assert known.find(marks(0)) is not None
    assert known.find(marks(1)) is None
    assert known.size == size


def test_a_large_result_is_not_kept() -> None:
    known = Resolutions()
    known.keep(marks(1), {("t", str(number)): None for number in range(MAX_KEYS + 1)})
    assert known.find(marks(1)) is None
    assert known.size == 0


def test_a_graph_has_a_bound() -> None:
    known = Resolutions()
    known.graph.add(AuthEdges(EventId("$a"), [EventId("$b")], False))
    known.trim()
    assert len(known.graph) == 2
    known.graph.add(AuthEdges(EventId("$c"), [EventId(f"${number}") for number in range(MAX_NODES)], False))
    assert known.size > MAX_NODES * 100
    known.trim()
    assert known.size == 0

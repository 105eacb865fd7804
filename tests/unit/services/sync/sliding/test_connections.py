"""What a process remembers of its clients' connections, and what it forgets. Spec: MSC4186 §Connections."""

import itertools

import pytest

from matrixcore.identifiers import RoomId, UserId
from services.sync.sliding.connections import (
    MAX_ANSWERS,
    MAX_PER_DEVICE,
    NOTHING_SENT,
    Connections,
    SentRoom,
    Told,
    UnknownPos,
)
from tessera.sync_token import Point, SyncToken, component_for

ANN = UserId("@ann:here.org")
TOKEN = SyncToken({3: Point(1, 17)}, 5)
ROOMS = NOTHING_SENT.set(RoomId("!a:here.org"), SentRoom("join", 4))
NEW = Told(None, NOTHING_SENT)


@pytest.fixture
def connections() -> Connections:
    numbers = itertools.count()
    return Connections(lambda: f"n{next(numbers)}")


def test_a_pos_leads_back_to_what_was_told(connections: Connections) -> None:
    pos = connections.keep(connections.begin(ANN, "D", "main"), NEW, ROOMS, TOKEN)
    _, told = connections.find(ANN, "D", "main", pos)
    assert (told.token, told.rooms) == (TOKEN, ROOMS)
    assert component_for(pos, 3) == 17  # a pos is a sync token for /messages and /relations


@pytest.mark.parametrize(
    ("user", "device", "conn_id"), [("@eve:here.org", "D", "main"), ("@ann:here.org", "E", "main"), (ANN, "D", "other")]
)
def test_a_pos_of_somebody_else_is_unknown(connections: Connections, user: UserId, device: str, conn_id: str) -> None:
    pos = connections.keep(connections.begin(ANN, "D", "main"), NEW, ROOMS, TOKEN)
    with pytest.raises(UnknownPos):
        connections.find(user, device, conn_id, pos)


@pytest.mark.parametrize("pos", ["", "s1", "x.n0-1", "s1AAAA.n0-1", "s1AAAA", "nonsense.n0-1", "s1.n0-" + "9" * 30])
def test_nonsense_is_unknown(connections: Connections, pos: str) -> None:
    connections.keep(connections.begin(ANN, "D", "main"), NEW, ROOMS, TOKEN)
    with pytest.raises(UnknownPos):
        connections.find(ANN, "D", "main", pos)


def test_the_last_pos_stays_until_the_next_is_used(connections: Connections) -> None:
    connection = connections.begin(ANN, "D", "")
    first = connections.keep(connection, NEW, ROOMS, TOKEN)
    _, told = connections.find(ANN, "D", "", first)
    answers = [
        connections.keep(connection, told, ROOMS.set(RoomId(f"!{number}:b"), SentRoom("join", 1)), TOKEN)
        for number in range(MAX_ANSWERS + 1)
    ]
    assert len(set(answers)) == MAX_ANSWERS + 1
    assert connections.find(ANN, "D", "", first)[1].rooms == ROOMS
    with pytest.raises(UnknownPos):
        connections.find(ANN, "D", "", answers[0])
    assert len(connections.find(ANN, "D", "", answers[-1])[1].rooms) == 2
    with pytest.raises(UnknownPos):
        connections.find(ANN, "D", "", first)


def test_an_answer_that_tells_nothing_new_takes_no_generation(connections: Connections) -> None:
    connection = connections.begin(ANN, "D", "")
    first = connections.keep(connection, NEW, ROOMS, TOKEN)
    _, told = connections.find(ANN, "D", "", first)
    second = connections.keep(connection, told, told.rooms, TOKEN._replace(user=6))
    assert first != second
    assert len(connection.generations) == 1
    connections.find(ANN, "D", "", second)
    connections.find(ANN, "D", "", first)


def test_a_device_has_a_few_connections_and_a_new_one_replaces_its_namesake(connections: Connections) -> None:
    kept = [
        connections.keep(connections.begin(ANN, "D", str(number)), NEW, ROOMS, TOKEN)
        for number in range(MAX_PER_DEVICE + 1)
    ]
    with pytest.raises(UnknownPos):
        connections.find(ANN, "D", "0", kept[0])
    assert len(connections) == MAX_PER_DEVICE
    connections.find(ANN, "D", "1", kept[1])
    connections.begin(ANN, "D", "1")
    with pytest.raises(UnknownPos):
        connections.find(ANN, "D", "1", kept[1])
    connections.find(ANN, "D", "2", kept[2])


def test_all_connections_together_are_bounded(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.sync.sliding.connections.MAX_ROOMS", 3)
    many = NOTHING_SENT.update({RoomId(f"!{number}:b"): SentRoom("join", 1) for number in range(2)})
    first = connections.keep(connections.begin(ANN, "D", ""), NEW, many, TOKEN)
    second = connections.keep(connections.begin(ANN, "E", ""), NEW, many, TOKEN)
    with pytest.raises(UnknownPos):
        connections.find(ANN, "D", "", first)
    assert connections.find(ANN, "E", "", second)[1].rooms == many

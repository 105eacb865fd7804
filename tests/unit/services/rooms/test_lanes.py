"""Whose turn it is. DESIGN section 3."""

from typing import cast

from matrixcore.identifiers import RoomId, UserId
from services.rooms.lanes import PDUS_OF_A_BATCH, UNPARK_PDUS, Lanes
from services.rooms.owned_partitions import OwnedPartition, OwnedPartitions
from tessera.bus import Delivered
from tessera.commands import Append, Command, CommandBody, NewEvent, ReceivePdus, Unpark

SAID = Append(NewEvent("m.room.message", None, {}))


class Partitions:
    """Those that are written here."""

    def __init__(self) -> None:
        self.owned = {number: OwnedPartition(number, 1, 1, 0, -1) for number in range(2)}

    def find(self, partition: int) -> OwnedPartition | None:
        return self.owned.get(partition)


def lanes() -> tuple[Partitions, Lanes]:
    partitions = Partitions()
    return partitions, Lanes(cast("OwnedPartitions", partitions))


def fill(partitions: Partitions, made: Lanes, *bodies: CommandBody, partition: int = 0) -> None:
    for number, body in enumerate(bodies):
        command = Command(bytes([number]), RoomId("!r:here.org"), partition, UserId("@u:here.org"), 0, body)
        made.add(partitions.owned[partition], Delivered(partition, number, command))


def pdus(count: int) -> ReceivePdus:
    return ReceivePdus(tuple(range(count)))


def test_people_go_first_and_peers_by_weight() -> None:
    partitions, made = lanes()
    assert not made
    fill(partitions, made, *[pdus(PDUS_OF_A_BATCH // 4)] * 6, SAID, SAID)
    assert [one.offset for one in made.next_batch()] == [6, 7, 0, 1, 2, 3]
    assert made
    fill(partitions, made, SAID)
    assert [one.offset for one in made.next_batch()] == [0, 4, 5]
    assert not made
    assert made.next_batch() == []


def test_a_command_that_is_too_large_goes_alone() -> None:
    partitions, made = lanes()
    fill(partitions, made, pdus(3 * PDUS_OF_A_BATCH), pdus(1), *[Unpark()] * (PDUS_OF_A_BATCH // UNPARK_PDUS))
    assert [one.offset for one in made.next_batch()] == [0]
    assert [one.offset for one in made.next_batch()] == [1, 2]
    assert [one.offset for one in made.next_batch()] == [3]


def test_what_is_somebody_elses_by_now_is_left_out() -> None:
    partitions, made = lanes()
    fill(partitions, made, pdus(1), SAID, pdus(1))
    fill(partitions, made, pdus(2), SAID, partition=1)
    partitions.owned[0] = OwnedPartition(0, 2, 1, 0, -1)  # lost and taken again: its commands come anew
    assert [(one.partition, one.offset) for one in made.next_batch()] == [(1, 1), (1, 0)]
    fill(partitions, made, SAID, partition=1)
    del partitions.owned[1]
    assert made.next_batch() == []
    assert not made

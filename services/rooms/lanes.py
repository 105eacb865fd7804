"""Whose turn it is: commands of people at once, those of peers by weight.

Both come through one topic (docs/adr/0002), and what a peer's command names may be hundreds of PDUs. A batch has all
commands of people that are there and of those about PDUs as many as a batch may bear; the others wait here, in order,
while what people send meanwhile goes first.

Spec: none; DESIGN.md section 3.
"""

from collections import deque
from typing import NamedTuple

from services.rooms.owned_partitions import OwnedPartition, OwnedPartitions
from tessera.bus import Delivered
from tessera.commands import Command, ReceivePdus, Unpark

PDUS_OF_A_BATCH = 200  # named by commands of peers, though at least one command goes
UNPARK_PDUS = 100  # what an unpark counts for, which names none


class _Waiting(NamedTuple):
    owned: OwnedPartition  # as it was when the command came; another one gets the command again
    delivered: Delivered


class Lanes:
    """Commands that were taken from the topic and are not decided yet."""

    def __init__(self, partitions: OwnedPartitions) -> None:
        self._partitions = partitions
        self._people: list[_Waiting] = []
        self._peers: deque[_Waiting] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._people or self._peers)

    def add(self, owned: OwnedPartition, one: Delivered) -> None:
        """A command of a partition that is written here."""
        waiting = _Waiting(owned, one)
        if _pdus_of(one.command):
            self._peers.append(waiting)
        else:
            self._people.append(waiting)

    def next_batch(self) -> list[Delivered]:
        """What is to be decided now; without what belongs to somebody else by now, or will be delivered again."""
        chosen, self._people = self._people, []
        pdus = 0
        while self._peers and pdus < PDUS_OF_A_BATCH:
            waiting = self._peers[0]
            if self._is_ours(waiting):
                more = _pdus_of(waiting.delivered.command)
                if pdus and pdus + more > PDUS_OF_A_BATCH:
                    break
                pdus += more
                chosen.append(waiting)
            self._peers.popleft()
        return [waiting.delivered for waiting in chosen if self._is_ours(waiting)]

    def _is_ours(self, waiting: _Waiting) -> bool:
        return self._partitions.find(waiting.owned.partition) is waiting.owned


def _pdus_of(command: Command) -> int:
    """About how many PDUs of the inbox the command makes the writer take in; 0 for a command of people."""
    match command.body:
        case ReceivePdus(inbox_ids):
            return max(1, len(inbox_ids))
        case Unpark():
            return UNPARK_PDUS
        case _:
            return 0

"""Which partitions a writer aims at: a fair share of its shard, moved one at a time, the richest giving.

Spec: none; DESIGN.md section 2, invariant 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from tessera.storage.leases import LivingWriter


def fair_share(partitions: int, writers: Iterable[LivingWriter], owner: str) -> int:
    """How many partitions one writer aims at; 0 for one that is draining or not (yet) among the living."""
    taking = [writer.owner for writer in writers if not writer.is_draining]
    return -(-partitions // len(taking)) if owner in taking else 0


def choose_free(free: Mapping[int, bool], owned: int, share: int, owner: str) -> list[int]:
    """What to take of what is free: all that was handed over to us, and others up to our share.

    Args:
        free: partition -> whether it was handed over to us.
        owned: how many we have already.
    """
    ours = [partition for partition, is_ours in free.items() if is_ours]
    others = [partition for partition, is_ours in free.items() if not is_ours]
    # Each begins elsewhere, so that writers who start together do not all want the same.
    start = crc32(owner.encode()) % len(others) if others else 0
    places = max(0, share - owned - len(ours))
    return sorted(ours + (others[start:] + others[:start])[:places])


@dataclass(frozen=True, slots=True)
class Gift:
    """A partition to give to a writer (its name, or its owner)."""

    partition: int
    heir: str


def next_gift(
    owned: Sequence[int], heirs: Mapping[int, str], writers: Sequence[LivingWriter], owner: str, share: int
) -> Gift | None:
    """What a writer should give away next.

    Args:
        owned: what it has, in the order in which it came: what came last stays longest.
        heirs: what it was asked to hand over, and to whom.
        share: its fair share; with 0 it gives everything.

    Returns:
        None if it has no more than its share, or nobody has less than theirs.
    """
    for partition in owned:
        if partition in heirs:
            return Gift(partition, heirs[partition])
    if len(owned) <= share:
        return None
    takers = [writer for writer in writers if not writer.is_draining and writer.owner != owner]
    poorest = min(takers, key=lambda writer: writer.partitions, default=None)
    # A draining writer gives beyond all shares; else nobody becomes as rich as the giver was.
    if poorest is None or (share > 0 and poorest.partitions + 1 >= len(owned)):
        return None
    return Gift(owned[0], poorest.owner)

"""How much may lie undone in a partition, and whose turn comes first when it fills up.

One topic carries all commands of a partition (docs/adr/0002), so a peer's flood is held back where
it enters: PDUs get half of the places, people the whole, and what frees space always goes.

Spec: none; DESIGN.md section 2, invariant 11, and section 3.
"""

from tessera.commands import Command, ReceivePdus, Unpark

UNDONE_LIMIT = 2_000  # commands of a partition above its done offset
PEERS_LIMIT = UNDONE_LIMIT // 2
RETRY_AFTER_MS = 1_000


def undone_limit(command: Command) -> int | None:
    """How many undone commands may lie before this one in its partition; None: as many as there are."""
    match command.body:
        case Unpark():
            return None
        case ReceivePdus():
            return PEERS_LIMIT
        case _:
            return UNDONE_LIMIT

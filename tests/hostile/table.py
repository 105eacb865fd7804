"""A hostile peer against a real server: each attack refused or contained, with bounded memory, and the room goes on.

    .venv/bin/python -m tests.hostile.table

Prints a Markdown table: attack, what happened, how long it took, and the resident memory of the server's process in
MiB before it, at most during it, and after it. `--short` does less of everything, as the tests do; `--only` names
attacks. After each attack a local user and a good peer send into the attacked room, and both arrive.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures.peer_certificates import PeerAuthority
from tests.hostile import answer_attacks, flood_attacks, pdu_attacks
from tests.hostile.stage import Memory, Stage, opened_stage, watched

Attack = Callable[[Stage], Awaitable[str]]

ATTACKS: dict[str, Attack] = {
    "wrong signatures": pdu_attacks.wrong_signatures,
    "wrong hashes": pdu_attacks.wrong_hashes,
    "events of other servers": pdu_attacks.events_of_others,
    "depth 2^53": pdu_attacks.deep_events,
    "cyclic auth chains and histories": pdu_attacks.circles,
    "missing auth chains and ancestors": pdu_attacks.missing_auth_chains,
    "1,000 forward extremities": pdu_attacks.many_extremities,
    "10 MB PDUs": pdu_attacks.large_pdus,
    "duplicate transactions": pdu_attacks.repeated_transactions,
    "PDUs of rooms that we are not in": pdu_attacks.unknown_rooms,
    "slow-loris answers": answer_attacks.slow_answers,
    "endless answers": answer_attacks.endless_answers,
    "redirect loops": answer_attacks.redirects,
    "well-known file of 1 GB": answer_attacks.huge_well_known,
    "well-known file in drops": answer_attacks.dripping_well_known,
    "names that lead to inner addresses": answer_attacks.inner_addresses,
    "key servers that lie": answer_attacks.lying_key_servers,
    "send_join with wrong state": answer_attacks.lying_joins,
    "ACL evasion": flood_attacks.shut_out,
    "requests in false names": flood_attacks.false_names,
    "to-device flood": flood_attacks.device_flood,
    "flood of other EDUs": flood_attacks.edu_flood,
    "slow-loris requests": flood_attacks.slow_requests,
    "flood of requests": flood_attacks.request_flood,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One attack."""

    name: str
    happened: str
    seconds: float
    memory: Memory

    def line(self) -> str:
        """As Markdown."""
        memory = self.memory
        figures = f"{self.seconds:.1f} s | {memory.before:.0f} | {memory.peak:.0f} | {memory.after:.0f}"
        return f"| {self.name} | {self.happened} | {figures} |"


async def play(stage: Stage, name: str) -> Row:
    """One attack; raises AssertionError where the server does not contain it."""
    seen: list[Memory] = []
    began = time.monotonic()
    with watched(stage.server.pid, seen):
        happened = await ATTACKS[name](stage)
    return Row(name, happened, time.monotonic() - began, seen[0])


async def run(folder: Path, names: list[str], *, short: bool) -> None:
    """Play them all, and print."""
    await asyncio.to_thread((folder / "ca").mkdir)
    async with opened_stage(folder / "server", PeerAuthority(folder / "ca"), short=short) as stage:
        print("| attack | what happened | time | RSS before | peak | after |\n|---|---|--:|--:|--:|--:|", flush=True)
        for name in names:
            print((await play(stage, name)).line(), flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", action="append", choices=list(ATTACKS), metavar="ATTACK", help="repeatable")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="th-") as folder:
        asyncio.run(run(Path(folder), arguments.only or list(ATTACKS), short=arguments.short))


if __name__ == "__main__":
    main()

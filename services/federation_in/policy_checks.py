"""Asking policy servers about events that were received without their signature.

The writer leaves such an event unsigned in the inbox; whoever hears of it first asks, puts the signature to the PDU if
there is one, and names it again. The writer judges it then, asked or not: a policy server that is dead or refuses
leaves it soft-failed.

Spec: S-S API §Validating Policy Server signatures.
"""

import asyncio
from collections.abc import Sequence

import structlog

from matrixcore.events import InvalidEvent, load_event
from matrixcore.identifiers import RoomId
from services.federation_in import metrics
from services.federation_in.naming import InboxNaming
from services.federation_in.receiving import InboxNames
from services.federation_in.room_turns import RoomTurns
from tessera.clock import Clock
from tessera.federation.errors import PeerError, PeerRefused
from tessera.federation.policy_servers import PolicyServers, RoomPolicy
from tessera.http.errors import MatrixError
from tessera.storage import inbox
from tessera.storage.database import Database
from tessera.storage.inbox import UnsignedRow
from tessera.storage.shards import RoomShards

log = structlog.get_logger(__name__)

ROWS = 50  # of one room at once
PARALLEL = 10  # questions about one room at once
LEASE_SECONDS = 90.0  # longer than all questions of one round
SWEEP_SECONDS = 5.0
SWEEP_ROOMS = 100


class PolicyChecks:
    """Asks for rooms, some side by side; several processes may."""

    def __init__(self, shards: RoomShards, servers: PolicyServers, clock: Clock) -> None:
        self._shards = shards
        self._servers = servers
        self._clock = clock
        self._turns = RoomTurns("asking a policy server")

    def wake(self, room_id: RoomId) -> None:
        """PDUs of a room may lie unsigned."""
        self._turns.wake(room_id)

    async def run(self, naming: InboxNaming) -> None:
        """Run for ever: ask about the rooms that wake it."""

        async def look_after(room_id: RoomId) -> None:
            while names := await self.ask_for(room_id):
                await naming.name([names], look_again=True)  # what stands above them may lack a signature, too

        await self._turns.run(look_after)

    async def sweep(self) -> None:
        """Run for ever: find what nobody asks about."""
        await self._turns.sweep(
            self._shards, self._clock, SWEEP_SECONDS, lambda tx: inbox.list_unsigned_rooms(tx, SWEEP_ROOMS)
        )

    async def ask_for(self, room_id: RoomId) -> InboxNames | None:
        """Ask about some of a room's PDUs; what is to be named again, None if there is nothing."""
        database = self._shards.of_room(room_id)
        async with database.reading() as tx:
            rows = await inbox.claim_unsigned(tx, room_id, LEASE_SECONDS, ROWS)
        if not rows:
            return None
        room = await self._servers.find(room_id)
        pdus = {row.inbox_id: row.pdu for row in rows}
        if room is not None:
            pdus |= await self._ask(room_id, room, rows)
        await self._note(database, pdus)
        return InboxNames(self._shards.partition_of(room_id), room_id, tuple(pdus))

    async def _ask(self, room_id: RoomId, room: RoomPolicy, rows: Sequence[UnsignedRow]) -> dict[int, bytes]:
        """The PDUs that were signed."""
        server = room.server
        if server is None:  # not used any more: the writer lets them pass
            return {}
        places, signed = asyncio.Semaphore(PARALLEL), dict[int, bytes]()

        async def one(row: UnsignedRow) -> None:
            async with places:
                try:
                    event = load_event(row.pdu, row.event_id, room.rules, room_id=room_id)
                    signed[row.inbox_id] = (await self._servers.ask(server, event)).pdu
                    metrics.POLICY_QUESTIONS.labels("signed").inc()
                except (PeerError, MatrixError, InvalidEvent) as trouble:
                    outcome = "refused" if isinstance(trouble, PeerRefused | MatrixError) else "unanswered"
                    metrics.POLICY_QUESTIONS.labels(outcome).inc()
                    log.info("not recommended", room_id=room_id, event_id=row.event_id, reason=str(trouble))

        await asyncio.gather(*(one(row) for row in rows))
        return signed

    @staticmethod
    async def _note(database: Database, pdus: dict[int, bytes]) -> None:
        async with database.reading() as tx:
            await inbox.note_asked(tx, pdus)

"""The state before an event whose ancestors are not here, as another server tells it.

Spec: S-S API §Retrieving events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from matrixcore.events import Event
from matrixcore.identifiers import EventId, RoomId, ServerName
from matrixcore.room_versions import ROOM_VERSIONS
from tessera.federation.errors import PeerError
from tessera.federation.event_fetching import EventFetcher
from tessera.storage import fetches
from tessera.storage.database import Database
from tessera.storage.fetches import FetchedRoom

log = structlog.get_logger(__name__)

SINGLE_EVENTS = 200  # more than so many are asked for as one state
# A few events of an old room may be nobody's any more; a state of which much cannot be had is not believed.
TOLERATED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class FetchedState:
    """A state that was told.

    Attributes:
        state: the IDs of its events, as far as they can be had.
        events: those of them and of their auth chain that are not here yet.
    """

    state: tuple[EventId, ...]
    events: tuple[Event, ...]


async def fetch_told_state(
    fetcher: EventFetcher,
    database: Database,
    room_id: RoomId,
    room: FetchedRoom,
    servers: Sequence[ServerName],
    event_id: EventId,
) -> FetchedState | None:
    """The state before an event, from the first of the servers that tells one; None if none does."""
    for number, server in enumerate(servers):
        try:
            fetched = await _fetch_from(fetcher, database, room_id, room, server, servers[number + 1 :], event_id)
        except PeerError as error:
            log.info("state not fetched", room_id=room_id, server=server, reason=str(error))
            continue
        if fetched is not None:
            return fetched
        log.info("state not believed", room_id=room_id, server=server, event_id=event_id)
    return None


async def _fetch_from(
    fetcher: EventFetcher,
    database: Database,
    room_id: RoomId,
    room: FetchedRoom,
    server: ServerName,
    others: Sequence[ServerName],
    event_id: EventId,
) -> FetchedState | None:
    told = await fetcher.state_ids(server, room_id, event_id)
    if room.create_event_id not in told.state:
        return None
    wanted = dict.fromkeys((*told.state, *told.auth_chain))
    async with database.reading() as tx:
        known = await fetches.find_known(tx, room_id, list(wanted))
    unknown = wanted.keys() - known.placed - known.lying - known.outliers
    rules = ROOM_VERSIONS[room.room_version]
    events: dict[EventId, Event] = {}
    if len(unknown) > SINGLE_EVENTS:
        whole = await fetcher.state(server, room_id, rules, event_id)
        events = {event.event_id: event for event in whole if event.event_id in unknown}
    lacking = unknown - events.keys()
    if 0 < len(lacking) <= SINGLE_EVENTS:
        events |= await fetcher.events([server, *others], room_id, rules, lacking)
        lacking -= events.keys()
    if len(lacking) > TOLERATED_SHARE * len(wanted):
        return None
    if lacking:
        log.warning("told a state with events that nobody has", room_id=room_id, server=server, events=len(lacking))
    return FetchedState(tuple(one for one in told.state if one not in lacking), tuple(events.values()))

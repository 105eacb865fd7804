"""From the commands of a batch to its rows and outcomes, without a query and without an await."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from matrixcore.events import load_event
from matrixcore.identifiers import RoomId
from matrixcore.room_versions import ROOM_VERSIONS
from services.rooms.foreseeing import Foreseen
from services.rooms.hot_rooms import HotRoom, HotRooms, hot_room_of
from services.rooms.local_events import append, create_room, draft
from services.rooms.parted_commands import PartedCommands
from services.rooms.purged import note_purged
from services.rooms.receipts import set_receipts
from services.rooms.room_work import PartitionWork, Refused, RoomWork, Signer, StateNotLoaded, start_work
from tessera.commands import Append, Command, CreateRoom, Draft, NotePurged, Outcome, OutcomeStatus, SetReceipts
from tessera.storage.rooms import Loaded, Wanted


class CommandFailed(Exception):
    """A command raised where nothing should: it is tried again alone, and buried at last."""

    def __init__(self, command: Command) -> None:
        super().__init__(command.id.hex())
        self.command = command


@dataclass(slots=True)
class Building:
    """A batch in the making.

    Attributes:
        parts: of commands that name inbox rows and break the writer.
        foreseen: what has been asked about the PDUs that the commands name.
        elsewhere: rooms of other servers of which nothing but a membership is told.
    """

    partitions: dict[int, PartitionWork]
    loaded: Loaded
    now_ms: int
    parts: PartedCommands
    foreseen: Foreseen = field(default_factory=Foreseen)
    works: dict[RoomId, RoomWork] = field(default_factory=dict)
    elsewhere: dict[RoomId, RoomWork] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


def take_loaded(rooms: HotRooms, wanted: Wanted, loaded: Loaded) -> dict[RoomId, HotRoom]:
    """Bring what was loaded into the hot rooms; the rooms that were loaded now."""
    fresh: dict[RoomId, HotRoom] = {}
    for room_id, row in loaded.rooms.items():
        room = fresh[room_id] = hot_room_of(row)
        rooms.put(room)
    touched: dict[RoomId, HotRoom] = dict(fresh)
    for room_id, event_type, state_key in wanted.state:
        room_or_none = rooms.find(room_id)
        if room_or_none is None:
            continue
        found = loaded.state.get((room_id, event_type, state_key))
        event = None if found is None else load_event(found[1], found[0], room_or_none.rules, room_id=room_id)
        room_or_none.learn((event_type, state_key), event)
        touched[room_id] = room_or_none
    for room_id, root in wanted.threads:
        room_or_none = rooms.find(room_id)
        if room_or_none is not None:
            room_or_none.threads[root] = loaded.threads.get((room_id, root))
    for room in touched.values():
        rooms.put(room)
    return fresh


def build_command(building: Building, rooms: HotRooms, command: Command, signer: Signer) -> None:
    """Add one command about local events to the batch; its outcome is accepted or refused.

    Raises:
        StateNotLoaded: load it and build the batch again.
        CommandFailed: this command breaks the writer; build the batch again without it.
    """
    try:
        building.outcomes.append(_outcome_of(building, rooms, command, signer))
    except StateNotLoaded:
        raise
    except Refused as refusal:
        building.outcomes.append(refuse(building, command, refusal))
    except Exception as error:
        structlog.get_logger(__name__).exception(
            "command failed", room_id=command.room_id, kind=type(command.body).__name__
        )
        raise CommandFailed(command) from error


def refuse(building: Building, command: Command, refusal: Refused) -> Outcome:
    """The outcome of a command that changes nothing."""
    part = building.partitions[command.partition]
    work = building.works.get(command.room_id)
    if work is not None:
        work.memberships.clear()
    return Outcome(
        command.id,
        OutcomeStatus.REFUSED,
        command.partition,
        part.incarnation,
        http_status=refusal.http_status,
        errcode=refusal.errcode,
        error=refusal.error,
    )


def _outcome_of(building: Building, rooms: HotRooms, command: Command, signer: Signer) -> Outcome:
    body = command.body
    if isinstance(body, CreateRoom):
        return _create(building, rooms, command, body, signer)
    if isinstance(body, NotePurged) and (followed_or_not := find_work(building, rooms, command)) is not None:
        return note_purged(followed_or_not, command)
    work = work_of(building, rooms, command, signer)
    if isinstance(body, Append):
        return append(work, command, body, signer)
    if isinstance(body, Draft):
        return draft(work, command, body, signer)
    if isinstance(body, SetReceipts):
        return set_receipts(work, command, body)
    raise TypeError(f"{type(body).__name__} is no command about local events")


def work_of(building: Building, rooms: HotRooms, command: Command, signer: Signer) -> RoomWork:
    """The batch's work on the command's room.

    Raises:
        Refused: there is no such room, or others have it and this server has nobody in it.
    """
    work = find_work(building, rooms, command)
    if work is None:
        raise Refused(404, "M_NOT_FOUND", "Unknown room")
    if not work.is_followed(signer.server_name):
        raise Refused(404, "M_NOT_FOUND", "This server is not in the room")
    return work


def find_work(building: Building, rooms: HotRooms, command: Command) -> RoomWork | None:
    """The batch's work on the command's room, whether this server is in it or not; None if there is no such room."""
    work = building.works.get(command.room_id)
    if work is None and (hot := rooms.find(command.room_id)) is not None:
        work = start_work(hot, building.partitions[command.partition], building.loaded, building.now_ms)
        building.works[command.room_id] = work
    return work


def _create(building: Building, rooms: HotRooms, command: Command, body: CreateRoom, signer: Signer) -> Outcome:
    if command.room_id in building.works or rooms.find(command.room_id) is not None:
        raise Refused(400, "M_ROOM_IN_USE", "The room exists already")
    rules = ROOM_VERSIONS.get(body.room_version)
    if rules is None:
        raise Refused(400, "M_UNSUPPORTED_ROOM_VERSION", "This room version is not supported")
    part = building.partitions[command.partition]
    position, count = part.position, len(part.records)
    hot = HotRoom(command.room_id, command.partition, rules, (), 0, 0, 0, 0, 0, 0, {})
    work = start_work(hot, part, building.loaded, building.now_ms, is_new=True)
    try:
        outcome = create_room(work, command, body, signer)
    except Exception:
        part.position = position
        del part.records[count:]
        raise
    building.works[command.room_id] = work
    return outcome


def needed_rooms(commands: Sequence[Command]) -> dict[RoomId, list[Command]]:
    """The commands by room, in order."""
    by_room: dict[RoomId, list[Command]] = {}
    for command in commands:
        by_room.setdefault(command.room_id, []).append(command)
    return by_room

"""Entering rooms that live on other servers, and telling our users of rooms that we are not in.

The state of a room that we join has been staged and checked before the command comes (tessera.storage.joins). The
commit takes it over inside PostgreSQL, under one record; here only the few events are looked at that decide on the
join. Until then, and after our last member has left, the room's events are not followed: memberships of our users are
noted as they become known, in the order of the partition.

Spec: S-S API §Joining Rooms, §Inviting to a room; DESIGN.md sections 4 and 6.
"""

from collections.abc import Mapping, Sequence

import orjson

from matrixcore.auth_events import CREATE, JOIN_RULES, auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.events import Event, load_event
from matrixcore.identifiers import EventId, StateKey, UserId
from matrixcore.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersionRules
from matrixcore.verdicts import Accepted
from services.rooms.batch_builder import Building, find_work
from services.rooms.hot_rooms import HotRoom, HotRooms, hash_of
from services.rooms.local_events import accept
from services.rooms.needs import state_keys_of
from services.rooms.placing import STRIPPED, place_event, strip
from services.rooms.room_work import Refused, RoomWork, Signer, start_work
from tessera.commands import Command, EnterRoom, MembershipDelta, NewEvent, NoteMembership, Outcome
from tessera.records import RecordKind, StateBody, StateMembership
from tessera.storage import inbox, joins
from tessera.storage.database import Transaction
from tessera.storage.joins import Join

MAX_OWN_MEMBERS = 1_000  # users of ours whom one join tells of their membership
_ANY_RULES = ROOM_VERSIONS["1"]  # of a room of which nothing is here that would need them


async def enter_room(
    tx: Transaction, building: Building, rooms: HotRooms, command: Command, body: EnterRoom, signer: Signer
) -> Outcome:
    """Take in a staged room and place our user's join on top of it; nothing of it is refused in part.

    Raises:
        Refused
    """
    join = await joins.find(tx, body.join_id)
    if join is None or join.state != "staged" or join.room_id != command.room_id:
        raise Refused(409, "M_BAD_STATE", "Nothing is staged for this join")
    known = find_work(building, rooms, command)
    if known is not None and known.is_followed(signer.server_name):
        raise Refused(409, "M_BAD_STATE", "This server is in the room already")
    rules = ROOM_VERSIONS[join.room_version]
    event = load_event(join.pdu, join.event_id, rules, room_id=join.room_id)
    state = await _load_state(tx, join, event, signer)
    _check_join(event, state)
    joined, invited = await joins.count_members(tx, join.join_id)
    last_position = await joins.get_last_position(tx, join.room_id) if known is None else known.last_position
    work = _begin(building, command, known, rules, last_position, joined, invited)
    work.hot.state.update(state)
    if known is None:
        create = work.create_event()
        work.create_row = (rules.version, create.sender, create.event_id, work.now_ms)
    _take_staged(work, join)
    await _note_own_members(tx, work, join, state, signer)
    # The resident server tells the others.
    position = place_event(work, event, signer.server_name, servers=())
    # What was before it can be backfilled from here.
    work.add_row("backward", (command.partition, join.room_id, event.event_id, position, 0))
    work.extremities, work.depth = (event.event_id,), event.depth
    if rules.event_id_format is EventIdFormat.GIVEN:
        work.reference_hashes = {event.event_id: hash_of(event)}
    building.works[join.room_id] = work
    return accept(work, command, (event.event_id,))


async def note_elsewhere(
    tx: Transaction, building: Building, rooms: HotRooms, command: Command, body: NoteMembership, signer: Signer
) -> Outcome:
    """Tell a user of a membership in a room that this server does not follow.

    Raises:
        Refused
    """
    work = find_work(building, rooms, command)
    if work is None:
        work = await _work_elsewhere(tx, building, command)
    elif work.is_followed(signer.server_name):
        raise Refused(409, "M_BAD_STATE", "This server is in the room: its events decide")
    one = StateMembership(body.user_id, body.membership, body.event_id, body.event_sender, body.stripped_state)
    position = work.record(RecordKind.STATE, StateBody((), None, (one,)))
    work.memberships.append(_delta(one, position, "leave"))
    return accept(work, command, ())


async def drop_strays(
    tx: Transaction, building: Building, rooms: HotRooms, command: Command, inbox_ids: Sequence[int]
) -> Outcome:
    """PDUs of a room that this server does not follow: they wait for a join under way, or are deleted.

    Raises:
        Refused: they wait.
    """
    if await joins.list_joining(tx, [command.room_id]):
        raise Refused(404, "M_NOT_FOUND", "This server is about to join the room")
    work = find_work(building, rooms, command) or await _work_elsewhere(tx, building, command)
    rows = await inbox.load(tx, command.room_id, inbox_ids)
    work.inbox.update((row.inbox_id, None) for row in rows)
    return accept(work, command, ())


async def _work_elsewhere(tx: Transaction, building: Building, command: Command) -> RoomWork:
    """The work on a room of which nothing is here but records about our users."""
    work = building.elsewhere.get(command.room_id)
    if work is None:
        last = await joins.get_last_position(tx, command.room_id)
        hot = HotRoom(command.room_id, command.partition, _ANY_RULES, (), 0, last, 0, 0, 0, 0, {})
        work = start_work(hot, building.partitions[command.partition], building.loaded, building.now_ms)
        work.is_here = False
        building.elsewhere[command.room_id] = work
    return work


async def _load_state(tx: Transaction, join: Join, event: Event, signer: Signer) -> dict[StateKey, Event | None]:
    """What the staged state has under every key that judging and placing the join looks at."""
    new = NewEvent(event.type, event.state_key, dict(event.content))
    keys = dict.fromkeys(
        [
            *state_keys_of(new, event.sender, signer.server_name),
            *auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules),
            *STRIPPED,
            JOIN_RULES,
        ]
    )
    found = await joins.load_state(tx, join.join_id, list(keys))
    return {
        key: load_event(found[key][1], found[key][0], event.rules, room_id=join.room_id) if key in found else None
        for key in keys
    }


def _check_join(event: Event, state: Mapping[StateKey, Event | None]) -> None:
    create = state.get(CREATE)
    if create is None:
        raise Refused(400, "M_INVALID_ROOM_STATE", "The room has no create event")
    keys = auth_state_keys(event.type, event.state_key, event.sender, event.content, event.rules)
    verdict = check_auth(event, {key: found for key in keys if (found := state.get(key)) is not None}, create=create)
    if not isinstance(verdict, Accepted):
        raise Refused(403, "M_FORBIDDEN", verdict.reason)


def _begin(
    building: Building,
    command: Command,
    known: RoomWork | None,
    rules: RoomVersionRules,
    last_position: int,
    joined: Mapping[str, int],
    invited: int,
) -> RoomWork:
    """The work on the room as it is staged. What is counted for ever goes on where it was."""
    hot = HotRoom(
        command.room_id,
        command.partition,
        rules,
        (),
        0,
        last_position,
        sum(joined.values()),
        invited,
        0 if known is None else known.notify_count,
        0 if known is None else known.highlight_all_count,
        {},
    )
    work = start_work(hot, building.partitions[command.partition], building.loaded, building.now_ms)
    gone = {} if known is None else {server: 0 for server in known.hot.servers if server not in joined}
    work.server_changes.update({**gone, **joined})
    hot.size += 100 * len(joined)
    return work


def _take_staged(work: RoomWork, join: Join) -> None:
    """The rows by which the commit takes over what is staged, at the position of the record that follows."""
    row = (join.partition, join.join_id, join.room_id, work.partition.position + 1, join.user_id)
    work.add_row("staged_events", (*row, work.now_ms))
    for section in ("staged_state", "staged_history", "staged_history_gone", "staged_state_gone"):
        work.add_row(section, row)
    work.add_row("joins_done", row[:2])


async def _note_own_members(
    tx: Transaction, work: RoomWork, join: Join, state: Mapping[StateKey, Event | None], signer: Signer
) -> None:
    """The record of the new state, with what it makes of others of our users."""
    shown = [strip(found) for key in STRIPPED if (found := state.get(key)) is not None]
    memberships: list[StateMembership] = []
    before: dict[UserId, str] = {}
    for one in await joins.list_own_members(tx, join, signer.server_name, MAX_OWN_MEMBERS):
        event = load_event(one.pdu, one.event_id, work.rules, room_id=join.room_id)
        user_id = UserId(event.state_key or "")
        if user_id == join.user_id:
            continue
        membership = event.membership or "leave"
        stripped = orjson.dumps([*shown, strip(event)]) if membership in ("invite", "knock") else None
        memberships.append(StateMembership(user_id, membership, event.event_id, event.sender, stripped))
        before[user_id] = one.known_membership or "leave"
    position = work.record(RecordKind.STATE, StateBody((), join.join_id, tuple(memberships)))
    work.memberships += [_delta(one, position, before[one.user_id]) for one in memberships]


def _delta(one: StateMembership, position: int, before: str) -> MembershipDelta:
    return MembershipDelta(
        one.user_id, one.membership, EventId(one.event_id), one.sender, position, one.stripped_state, before
    )

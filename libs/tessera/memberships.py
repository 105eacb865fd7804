"""Bringing local users' memberships from the rooms to their room lists and logs.

Two appliers do it, in any order and any number of times: the gateway that waited for a command,
before it answers (users read their own writes), and the projector from room.log. A row of the
list remembers the (incarnation, position) that set it and yields to a higher one only.
"""

from collections.abc import Sequence

from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from tessera.commands import Outcome
from tessera.fanout import Fanout
from tessera.records import EventBody, LogRecord, StateBody, StateMembership
from tessera.storage import user_log, user_rooms
from tessera.storage.database import Database
from tessera.storage.user_rooms import MembershipChange


async def project_memberships(accounts: Database, fanout: Fanout, changes: Sequence[MembershipChange]) -> None:
    """Bring the room lists and logs of local users up to these changes, and wake their clients. Repeatable."""
    if not changes:
        return
    async with accounts.transaction() as tx:
        heads = await user_rooms.apply_changes(tx, changes)
    if heads:
        await fanout.publish_user_wakes(user_log.wakes_of(heads))


def changes_of_outcome(outcome: Outcome, room_id: RoomId) -> list[MembershipChange]:
    """The memberships that a command moved."""
    return [
        MembershipChange(
            delta.user_id,
            room_id,
            delta.membership,
            delta.event_id,
            delta.sender,
            outcome.partition,
            outcome.incarnation,
            delta.position,
            delta.stripped_state,
        )
        for delta in outcome.memberships
    ]


def changes_of_records(records: Sequence[LogRecord], server_name: ServerName) -> list[MembershipChange]:
    """The memberships of this server's users that records tell of."""
    return [
        MembershipChange(
            one.user_id,
            record.room_id,
            one.membership,
            one.event_id,
            one.sender,
            record.partition,
            record.incarnation,
            record.position,
            one.stripped_state,
        )
        for record in records
        for one in memberships_of(record, server_name)
    ]


def memberships_of(record: LogRecord, server_name: ServerName) -> Sequence[StateMembership]:
    """What one record made of this server's users: an event of one of them, or what a resolution changed."""
    body = record.body
    if isinstance(body, StateBody):
        return body.memberships
    if not isinstance(body, EventBody) or body.membership is None:
        return ()
    user_id = _local_user(body.state_key, server_name)
    if user_id is None:
        return ()
    return (StateMembership(user_id, body.membership, body.event_id, body.sender, body.stripped_state),)


def _local_user(state_key: str | None, server_name: ServerName) -> UserId | None:
    try:
        user_id = parse_user_id(state_key)
    except InvalidIdentifier:
        return None
    return user_id if server_of(user_id) == server_name else None

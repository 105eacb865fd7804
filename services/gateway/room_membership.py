"""Joining, inviting, leaving, kicking, banning, knocking: what the gateway adds before it commands the room.

The writer judges by the room alone; here is what needs the account store or other rooms: names and avatars,
invite permissions, and the allow rules of restricted rooms.

Spec: C-S API §Room membership.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, RoomId, ServerName, UserId, parse_user_id, server_of
from services.gateway.member_profiles import load_invitees, load_profile
from services.gateway.room_changes import RoomChanges, Session
from tessera.commands import NewEvent
from tessera.http.errors import BadJson, Forbidden, InvalidParam, MatrixError, MissingParam, NotFound
from tessera.restricted_joins import CannotGrantJoin, find_authoriser, list_other_authorisers
from tessera.storage import notice_rooms, user_log, user_rooms
from tessera.storage.room_reads.rooms import RoomForReader, find_for_reader

MEMBERSHIPS = frozenset(("join", "invite", "leave", "ban", "knock"))
_PROFILE_KEYS = ("displayname", "avatar_url")


async def join_room(
    changes: RoomChanges,
    session: Session,
    room_id: RoomId,
    extra: Mapping[str, Any],
    *,
    refresh: bool = False,
    via: Sequence[ServerName] = (),
) -> str | None:
    """Join the session's user, who may be joined already.

    Args:
        extra: further content of the member event (`reason`, or a name for this room alone).
        refresh: put the content into the room even if the user is joined: a change of name in this room.
        via: servers that may know the room.

    Returns:
        The ID of the member event, None if there was nothing to do.

    Raises:
        NotFound: the room is not known here.
        MatrixError: the user may not join.
    """
    profile = await load_profile(changes.accounts, session.user_id)
    content = {**profile.content("join"), **extra, "membership": "join"}
    content.pop("join_authorised_via_users_server", None)
    found = await _find_room(changes, room_id, session.user_id)
    if found is None and changes.others is not None:
        event_id = await changes.others.join(session, room_id, via, content)
        if event_id is not None:
            return event_id
        found = await _find_room(changes, room_id, session.user_id)
    if found is None:
        raise NotFound("This room is not known here")
    if found.membership == "join" and not refresh:
        return None
    if found.membership not in ("join", "invite"):
        own = server_of(session.user_id)
        try:
            authoriser = await find_authoriser(changes.shards, found.room, session.user_id, own)
        except CannotGrantJoin:
            others = await list_other_authorisers(changes.shards, found.room, own)
            if changes.others is None or not others:
                raise
            return await changes.others.join_vouched_for(session, room_id, others, content)
        if authoriser is not None:
            content["join_authorised_via_users_server"] = authoriser
    return await changes.append(
        room_id,
        session,
        NewEvent("m.room.member", session.user_id, content),
        done_if_membership=() if refresh else ("join",),
    )


async def invite_user(
    changes: RoomChanges, session: Session, room_id: RoomId, target: UserId, extra: Mapping[str, Any]
) -> str | None:
    """Invite a user; inviting again is no event.

    Raises:
        MatrixError: the sender may not invite, the user is joined or banned, or blocks invites.
    """
    if server_of(target) != server_of(session.user_id):
        return await _invite_elsewhere(changes, session, room_id, target, extra)
    if target == session.user_id:
        raise Forbidden("You cannot invite yourself")
    if changes.bridges is not None:
        await changes.bridges.make_users([target])
    profile = (await load_invitees(changes.accounts, [target])).get(target)
    shown = {} if profile is None else profile.content("invite")
    content = {**shown, **extra, "membership": "invite"}
    return await changes.append(
        room_id,
        session,
        NewEvent("m.room.member", target, content),
        expect_membership=("leave", "knock", "invite"),
        done_if_membership=("invite",),
    )


async def _invite_elsewhere(
    changes: RoomChanges, session: Session, room_id: RoomId, target: UserId, extra: Mapping[str, Any]
) -> str | None:
    if changes.others is None:
        raise MatrixError("The user's server cannot be reached", errcode="M_NOT_FOUND", status=404)
    async with changes.shards.of_room(room_id).reading() as tx:
        found = await find_for_reader(tx, room_id, target)
    if found is not None and found.membership == "invite":
        return None
    return await changes.others.invite(session, room_id, target, {**extra, "membership": "invite"})


async def leave_room(changes: RoomChanges, session: Session, room_id: RoomId, extra: Mapping[str, Any]) -> str | None:
    """Leave a room, reject an invite or take a knock back; leaving a room twice is no event."""
    found = await _find_room(changes, room_id, session.user_id)
    content = {**extra, "membership": "leave"}
    if found is None and changes.others is not None:
        return await changes.others.leave(session.user_id, room_id, content)
    if found is None:
        raise NotFound("This room is not known here")
    if found.membership is None:
        raise Forbidden("You are not in this room")
    if found.membership == "invite":
        async with changes.accounts.reading() as tx:
            is_notices = await notice_rooms.is_notice_room(tx, session.user_id, room_id)
        if is_notices:
            raise MatrixError("This invite cannot be rejected", errcode="M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", status=403)
    return await changes.append(
        room_id, session, NewEvent("m.room.member", session.user_id, content), done_if_membership=("leave",)
    )


async def kick_user(
    changes: RoomChanges, session: Session, room_id: RoomId, target: UserId, extra: Mapping[str, Any]
) -> str | None:
    """Remove a member, or take an invite or knock away. Whoever is not in the room cannot be kicked (403)."""
    return await changes.append(
        room_id,
        session,
        NewEvent("m.room.member", target, {**extra, "membership": "leave"}),
        expect_membership=("join", "invite", "knock"),
    )


async def ban_user(
    changes: RoomChanges, session: Session, room_id: RoomId, target: UserId, extra: Mapping[str, Any]
) -> str | None:
    """Ban a user; banning again with the same reason is no event."""
    return await changes.append(room_id, session, NewEvent("m.room.member", target, {**extra, "membership": "ban"}))


async def unban_user(
    changes: RoomChanges, session: Session, room_id: RoomId, target: UserId, extra: Mapping[str, Any]
) -> str | None:
    """Take a ban back; whoever is not banned cannot be unbanned (403)."""
    return await changes.append(
        room_id,
        session,
        NewEvent("m.room.member", target, {**extra, "membership": "leave"}),
        expect_membership=("ban",),
    )


async def knock_room(
    changes: RoomChanges,
    session: Session,
    room_id: RoomId,
    extra: Mapping[str, Any],
    *,
    via: Sequence[ServerName] = (),
) -> str | None:
    """Ask to be let in; asking again is no event.

    Args:
        via: servers that may know the room.
    """
    found = await _find_room(changes, room_id, session.user_id)
    profile = await load_profile(changes.accounts, session.user_id)
    content = {**profile.content("knock"), **extra, "membership": "knock"}
    if found is None and changes.others is not None:
        return await changes.others.knock(session, room_id, via, content)
    if found is None:
        raise NotFound("This room is not known here")
    return await changes.append(
        room_id, session, NewEvent("m.room.member", session.user_id, content), done_if_membership=("knock",)
    )


async def forget_room(changes: RoomChanges, user_id: UserId, room_id: RoomId) -> None:
    """Forget a room that the user has left; again is no change.

    Raises:
        MatrixError: the user has not left it (400), or never was there (404).
    """
    async with changes.accounts.transaction() as tx:
        row = await user_rooms.find_room(tx, user_id, room_id)
        if row is None:
            raise NotFound("You have never been in this room")
        if row.membership not in ("leave", "ban"):
            raise MatrixError("You have to leave the room first", errcode="M_UNKNOWN", status=400)
        heads = await user_rooms.forget(tx, user_id, room_id)
    if heads:
        await changes.fanout.publish_user_wakes(user_log.wakes_of(heads))


async def set_member_state(
    changes: RoomChanges, session: Session, room_id: RoomId, state_key: str, content: Mapping[str, Any]
) -> str | None:
    """PUT /state/m.room.member/{user}: the same paths as the membership endpoints, with the client's content.

    Returns:
        The ID of the new member event, None if there was nothing to do.
    """
    try:
        target = parse_user_id(state_key)
    except InvalidIdentifier as error:
        raise InvalidParam(f"stateKey: {error}") from error
    membership = content.get("membership")
    if membership not in MEMBERSHIPS:
        raise BadJson("membership must be one of join, invite, leave, ban, knock")
    own = target == session.user_id
    if membership in ("join", "knock") and not own:
        raise Forbidden("You cannot do this for somebody else")
    match membership:
        case "join":
            return await join_room(changes, session, room_id, content, refresh=True)
        case "knock":
            return await knock_room(changes, session, room_id, content)
        case "invite":
            return await invite_user(changes, session, room_id, target, content)
        case "ban":
            return await ban_user(changes, session, room_id, target, content)
        case _ if own:
            return await leave_room(changes, session, room_id, content)
        case _:
            # A kick or an unban: who may do it is the same question to the writer's auth rules.
            return await changes.append(room_id, session, NewEvent("m.room.member", target, dict(content)))


def reason_of(body: Mapping[str, Any]) -> dict[str, str]:
    """The `reason` of a membership request, as content."""
    reason = body.get("reason")
    if reason is None:
        return {}
    if not isinstance(reason, str):
        raise BadJson("reason must be a string")
    return {"reason": reason}


def target_of(body: Mapping[str, Any]) -> UserId:
    """The `user_id` of a membership request about somebody else."""
    if "user_id" not in body:
        raise MissingParam("user_id is missing")
    try:
        return parse_user_id(body["user_id"])
    except InvalidIdentifier as error:
        raise InvalidParam(f"user_id: {error}") from error


async def _find_room(changes: RoomChanges, room_id: RoomId, user_id: UserId) -> RoomForReader | None:
    """The room, if this server follows it: what it knows of others is out of date."""
    async with changes.shards.of_room(room_id).reading() as tx:
        found = await find_for_reader(tx, room_id, user_id)
    return found if found is not None and found.is_followed else None

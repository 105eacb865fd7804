"""A changed name or avatar in the member events of all rooms that the user is joined to.

Spec: C-S API §Profiles, "Events on Change of Profile Information".
"""

import asyncio
from typing import Any

import orjson
import structlog

from matrixcore.identifiers import RoomId, UserId
from services.gateway.member_profiles import load_profile
from services.gateway.new_room import MemberProfile
from services.gateway.room_changes import RoomChanges, Session
from tessera.commands import NewEvent
from tessera.http.errors import MatrixError
from tessera.storage import user_rooms
from tessera.storage.room_reads.members import list_member_contents

log = structlog.get_logger(__name__)

PARALLEL_ROOMS = 8
ROOMS_IN_QUERY = 500


class MemberEventPropagator:
    """A `ProfilePropagator`: refreshes the user's member events, several rooms side by side."""

    def __init__(self, changes: RoomChanges) -> None:
        self._changes = changes

    async def __call__(self, user_id: UserId) -> None:
        """Return when all joined rooms have the profile that is stored now. Repeatable.

        Raises:
            RoomUnavailable: some room did not take it; it will be tried again.
        """
        profile = await load_profile(self._changes.accounts, user_id)
        async with self._changes.accounts.reading() as tx:
            rooms = [room.room_id for room in await user_rooms.list_rooms(tx, user_id, ("join",))]
        places = asyncio.Semaphore(PARALLEL_ROOMS)

        async def refresh(room_id: RoomId, content: dict[str, Any]) -> None:
            async with places:
                await self._refresh(user_id, room_id, content)

        for name, group in self._changes.shards.group_rooms(rooms).items():
            for start in range(0, len(group), ROOMS_IN_QUERY):
                async with self._changes.shards.databases[name].reading() as tx:
                    pdus = await list_member_contents(tx, group[start : start + ROOMS_IN_QUERY], user_id)
                stale = [
                    (room_id, with_profile(content, profile))
                    for room_id, content in ((room_id, orjson.loads(pdu)["content"]) for room_id, pdu in pdus)
                    if with_profile(content, profile) != content
                ]
                await asyncio.gather(*(refresh(room_id, content) for room_id, content in stale))

    async def _refresh(self, user_id: UserId, room_id: RoomId, content: dict[str, Any]) -> None:
        try:
            await self._changes.append(
                room_id, Session(user_id), NewEvent("m.room.member", user_id, content), expect_membership=("join",)
            )
        except MatrixError as error:
            if error.status == 503:
                raise
            # The user left meanwhile, or the room forbids it: nothing is owed there any more.
            log.info("profile not taken by a room", room_id=room_id, errcode=error.errcode)


def with_profile(content: dict[str, Any], profile: MemberProfile) -> dict[str, Any]:
    """The content of a joined member's event with this profile; the rest of a join stays, but for its occasion."""
    kept = {
        key: value
        for key, value in content.items()
        if key not in ("displayname", "avatar_url", "reason", "third_party_invite", "join_authorised_via_users_server")
    }
    changed = {**kept, **profile.content("join")}
    # Compared with what is there, so that a room that has the profile already gets no event.
    same = all(changed.get(key) == content.get(key) for key in ("displayname", "avatar_url"))
    return content if same else changed

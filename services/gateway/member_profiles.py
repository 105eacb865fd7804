"""What member events show of local users, and whether a user lets others invite them."""

from collections.abc import Sequence

from matrixcore.identifiers import UserId
from services.gateway.new_room import MemberProfile
from tessera.http.errors import MatrixError
from tessera.storage import invite_permissions, profiles
from tessera.storage.database import Database, Transaction


async def load_profiles(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, MemberProfile]:
    """The names and avatars of those of the users that are local, in one query."""
    found = await profiles.list_profiles(tx, list(user_ids))
    return {user_id: MemberProfile(profile.displayname, profile.avatar_url) for user_id, profile in found.items()}


async def load_profile(accounts: Database, user_id: UserId) -> MemberProfile:
    """The name and avatar of one local user; empty for others."""
    async with accounts.reading() as tx:
        return (await load_profiles(tx, [user_id])).get(user_id, MemberProfile())


async def load_invitees(
    accounts: Database, user_ids: Sequence[UserId], *, also: UserId | None = None
) -> dict[UserId, MemberProfile]:
    """The profiles of users who are to be invited.

    Args:
        also: another user whose profile is wanted.

    Raises:
        MatrixError: one of them lets nobody invite them (403 M_INVITE_BLOCKED). Spec: §Invite permission.
    """
    async with accounts.reading() as tx:
        found = await load_profiles(tx, [*user_ids, *([also] if also is not None else [])])
        if not user_ids:
            return found
        blocking = await invite_permissions.list_blocking(tx, user_ids)
    if blocking:
        raise MatrixError(f"{blocking[0]} does not accept invites", errcode="M_INVITE_BLOCKED", status=403)
    return found

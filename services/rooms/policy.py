"""What a room's policy server has to say: events that it has not signed go no further than this.

The writer looks at signatures only. Others ask for them: whoever sent the command about a local event, and
federation_in about what was received.

Spec: S-S API §Policy Servers; DESIGN.md section 3 (draft, then append).
"""

from matrixcore.events import Event
from matrixcore.identifiers import ServerName
from matrixcore.policy_servers import POLICY, find_policy_server, is_recommended
from services.rooms.room_work import Refused, RoomWork
from tessera.commands import NEEDS_POLICY_SIGNATURE


def lacks_signature(work: RoomWork, event: Event) -> bool:
    """Whether the room uses a policy server that has not signed the event. Raises StateNotLoaded."""

    def has_members(server: ServerName) -> bool:
        return work.server_changes.get(server, work.hot.servers.get(server, 0)) > 0

    policy = work.state(POLICY)
    return policy is not None and not is_recommended(event, find_policy_server(policy, has_members))


def require_signature(work: RoomWork, event: Event) -> None:
    """Refuse an event of this server, or one that enters by it, for which a signature is to be had first.

    Raises:
        Refused, StateNotLoaded
    """
    if lacks_signature(work, event):
        raise Refused(403, NEEDS_POLICY_SIGNATURE, "The room's policy server has not signed the event")

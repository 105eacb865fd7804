"""Server access control lists.

Spec: C-S API §Server Access Control Lists (ACLs) for rooms; S-S API §Server Access Control Lists.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from matrixcore.globs import Matcher, whole_value_matcher
from tessera.federation.server_names import is_address

MAX_GLOBS_KEPT = 4_096


def is_server_allowed(acl: Mapping[str, Any] | None, server: str) -> bool:
    """Whether a server may take part in a room.

    Args:
        acl: the content of the room's m.room.server_acl; None if it has none.
        server: its name; a port does not matter.
    """
    if acl is None:
        return True
    host = _without_port(server)
    if acl.get("allow_ip_literals", True) is False and is_address(host.removeprefix("[").removesuffix("]")):
        return False
    if _matches_any(acl.get("deny"), host):
        return False
    return _matches_any(acl.get("allow"), host)


def _matches_any(globs: object, host: str) -> bool:
    if not isinstance(globs, list | tuple):
        return False
    return any(isinstance(glob, str) and _matcher(glob)(host) for glob in globs)


@lru_cache(maxsize=MAX_GLOBS_KEPT)
def _matcher(glob: str) -> Matcher:
    return whole_value_matcher(glob)


def _without_port(server: str) -> str:
    if server.startswith("["):
        return server[: server.find("]") + 1]
    return server.partition(":")[0]

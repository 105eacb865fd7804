"""State resolution: the one state that a forked room continues with.

`Resolution` tells its caller what to load, in slices, and then resolves; `resolve_state` does
it in one step for a caller that has everything at hand.

Spec: Room Versions 1, 2 and 12, §State resolution; MSC4297 for v2.1.
"""

from matrixcore.state_res.auth_graph import AuthEdges, AuthGraph
from matrixcore.state_res.conflicts import StateMap, separate_conflicted, separate_conflicted_v1
from matrixcore.state_res.resolution import Resolution, resolve_state

__all__ = [
    "AuthEdges",
    "AuthGraph",
    "Resolution",
    "StateMap",
    "resolve_state",
    "separate_conflicted",
    "separate_conflicted_v1",
]

"""What a hot room remembers of its forks: the auth DAG as far as it was walked, and what states resolved to.

Both are facts about events that are stored, so nothing of it is ever wrong; it goes with the hot room, and what a
failed batch has put in goes with the hot room that the failure drops.

Spec: none; DESIGN.md section 3 (memoised by the set of states).
"""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b

from matrixcore.identifiers import EventId, StateKey
from matrixcore.state_res import AuthGraph
from tessera.ids import IdSource

MAX_REMEMBERED = 32  # resolutions of one room
MAX_KEYS = 500  # of one of them; a larger one is made again
MAX_NODES = 60_000  # of a room's auth DAG that is kept

_NODE_BYTES = 320
_KEY_BYTES = 200

Resolved = Mapping[StateKey, EventId | None]


_SECRET = IdSource().random_bytes(16)


def mark_of(key: StateKey, event_id: EventId | None) -> int:
    """What a state's mark has of one key; 0 for a key that it lacks.

    A state's mark is the sum over its keys, so a change costs one look-up. The hash is keyed with a secret of this
    process: nobody outside can make two states that have one mark. (Python's own hash of a tuple will not do: its
    sums collide by themselves.)
    """
    if event_id is None:
        return 0
    text = "\0".join((*key, event_id)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=16, key=_SECRET).digest(), "big")


class Resolutions:
    """Of one room."""

    def __init__(self) -> None:
        self.graph = AuthGraph()
        self._results: OrderedDict[frozenset[int], Resolved] = OrderedDict()
        self._keys = 0

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _NODE_BYTES * len(self.graph) + _KEY_BYTES * self._keys

    def find(self, marks: frozenset[int]) -> Resolved | None:
        """What the states with these marks have, once resolved, under the keys in which they differ."""
        found = self._results.get(marks)
        if found is not None:
            self._results.move_to_end(marks)
        return found

    def keep(self, marks: frozenset[int], resolved: Resolved) -> None:
        """Remember a result."""
        if len(resolved) > MAX_KEYS or marks in self._results:
            return
        self._results[marks] = resolved
        self._keys += len(resolved)
        if len(self._results) > MAX_REMEMBERED:
            _, oldest = self._results.popitem(last=False)
            self._keys -= len(oldest)

    def forget_graph(self) -> None:
        """Walk the auth DAG anew the next time."""
        self.graph = AuthGraph()

    def trim(self) -> None:
        """Keep the bound of the auth DAG."""
        if len(self.graph) > MAX_NODES:
            self.forget_graph()

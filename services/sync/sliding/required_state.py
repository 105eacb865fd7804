"""Which state of a room a client wants, in one shape for both forms of the request.

A rule's wishes are kept apart from those of other rules: a room that several rules match gets what any of them
asks for. What a rule asks for is a set of atoms, so that "what does it ask for now that it did not before" is a
difference of sets.

Spec: MSC4186 §RequiredStateRequest, §Combining room configs, §Changes to required_state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

MEMBER = "m.room.member"


class Element(NamedTuple):
    """An event type and a state key; None is any."""

    type: str | None
    state_key: str | None

    def matches(self, event_type: str, state_key: str) -> bool:
        """Whether it names a key of the state."""
        return self.type in (None, event_type) and self.state_key in (None, state_key)


class Atom(NamedTuple):
    """One element of an `include` with what is taken away from it.

    Attributes:
        is_lazy: wildcards leave member events out, which come with what they are needed for.
    """

    element: Element
    exclude: frozenset[Element]
    is_lazy: bool

    def matches(self, event_type: str, state_key: str) -> bool:
        """Whether a key of the state is asked for."""
        if not self.element.matches(event_type, state_key):
            return False
        if event_type == MEMBER and self.is_lazy and self.element.state_key is None:
            return False
        return not any(one.matches(event_type, state_key) for one in self.exclude)


@dataclass(frozen=True, slots=True)
class RequiredState:
    """What all rules that match a room want of its state.

    Attributes:
        lazy_members: whether the members that a timeline needs are wanted.
    """

    atoms: frozenset[Atom] = frozenset()
    lazy_members: bool = False

    def matches(self, event_type: str, state_key: str) -> bool:
        """Whether a key of the state is asked for."""
        return any(atom.matches(event_type, state_key) for atom in self.atoms)

    @property
    def wants_all_members(self) -> bool:
        """Whether every member event is asked for, so that none has to come lazily."""
        return any(
            atom.element.matches(MEMBER, "") and atom.element.state_key is None and not atom.is_lazy
            for atom in self.atoms
        )

    def beyond(self, other: "RequiredState") -> "RequiredState":
        """What it asks for and the other one does not."""
        return RequiredState(self.atoms - other.atoms, self.lazy_members and not other.lazy_members)


NOTHING = RequiredState()


def from_include(
    include: Iterable[Element], exclude: Iterable[Element] = (), *, lazy_members: bool = False
) -> RequiredState:
    """The wishes of one rule."""
    without = frozenset(exclude)
    return RequiredState(frozenset(Atom(one, without, lazy_members) for one in include), lazy_members)


@lru_cache(maxsize=1_000)  # clients repeat themselves, room by room and request by request
def combined(wishes: tuple[RequiredState, ...]) -> RequiredState:
    """The superset of several rules' wishes."""
    if len(wishes) == 1:
        return wishes[0]
    atoms = frozenset[Atom]().union(*(one.atoms for one in wishes))
    return RequiredState(atoms, any(one.lazy_members for one in wishes))

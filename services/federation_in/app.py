"""All routes that federation_in serves.

A module of the specification has a FastAPI `router`, plain `routes`, or both, with whole paths.
"""

from collections.abc import Iterator

from fastapi import APIRouter
from starlette.routing import BaseRoute

from services.federation_in import (
    event_reads,
    history_reads,
    invites,
    joins,
    keys,
    knocks,
    leaves,
    openid,
    policy_signing,
    public_rooms,
    queries,
    space_hierarchy,
    state_reads,
    third_party_invites,
    transactions,
    user_keys,
    version,
)

# One line for each module; those of `keys` are a resource of their own, which listeners may name apart.
_MODULES = (
    event_reads,
    history_reads,
    invites,
    joins,
    knocks,
    leaves,
    openid,
    policy_signing,
    public_rooms,
    queries,
    space_hierarchy,
    state_reads,
    third_party_invites,
    transactions,
    user_keys,
    version,
)


def federation_routes() -> Iterator[BaseRoute]:
    """The plain routes of the resource `federation`."""
    for module in _MODULES:
        yield from getattr(module, "routes", ())


def federation_routers() -> Iterator[APIRouter]:
    """The FastAPI routers of the resource `federation`."""
    for module in _MODULES:
        if (router := getattr(module, "router", None)) is not None:
            yield router


def key_routers() -> Iterator[APIRouter]:
    """The FastAPI routers of the resource `keys`."""
    yield keys.router

"""How the services run as separate processes. Spec: none; DESIGN.md section 10."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from tessera.config.listeners import Listener
from tessera.config.values import Section

ServiceName = Literal[
    "gateway", "rooms", "sync", "media", "projector", "federation-in", "federation-out", "push", "appservice"
]
SERVICE_NAMES: tuple[ServiceName, ...] = get_args(ServiceName)

InstanceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]


class ServiceSettings(Section):
    """One kind of process.

    Attributes:
        listeners: where `tessera run` of this service listens; absent, it is told by --port.
    """

    listeners: tuple[Listener, ...] = ()

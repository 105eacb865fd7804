"""Where the server listens, and what it serves there."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, Field, model_validator

from tessera.config.values import Section, Texts

ResourceName = Literal["client", "federation", "media", "keys", "openid", "static", "metrics", "health"]
RESOURCE_NAMES: tuple[str, ...] = get_args(ResourceName)

ALL_ADDRESSES = ("::", "0.0.0.0")  # noqa: S104 -- Synapse's default for a listener without addresses
LOOPBACK = ("::1", "127.0.0.1")

# What a resource brings with it, as in Synapse.
_IMPLIED: dict[str, tuple[str, ...]] = {
    "client": ("media", "static"),
    "federation": ("keys", "openid", "media"),
}


class Resource(Section):
    """Names of what is served; `compress` is Synapse's and has no effect, replies go out as they are."""

    names: tuple[ResourceName, ...]
    compress: bool = False


class Listener(Section):
    """One port on some addresses. Port 0 takes a free one."""

    port: Annotated[int, Field(ge=0, le=65535)]
    bind_addresses: Texts = Field(
        default=ALL_ADDRESSES, validation_alias=AliasChoices("bind_addresses", "bind_address"), min_length=1
    )
    type: Literal["http", "metrics"] = "http"
    tls: bool = False
    x_forwarded: bool = False
    resources: tuple[Resource, ...] = ()
    tag: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _metrics_listener(cls, data: Any) -> Any:
        """Synapse's listener of type metrics is one that serves metrics alone."""
        if isinstance(data, dict) and data.get("type") == "metrics" and "resources" not in data:
            return {**data, "resources": [{"names": ["metrics", "health"]}]}
        return data

    def resource_names(self) -> frozenset[str]:
        """All that is served here. /health is on every listener."""
        names = {name for resource in self.resources for name in resource.names}
        return frozenset(names | {more for name in names for more in _IMPLIED.get(name, ())} | {"health"})

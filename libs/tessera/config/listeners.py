"""Where the server listens, and what it serves there."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from tessera.config.values import FilePath, Section, Texts

ResourceName = Literal["client", "federation", "media", "keys", "openid", "static", "metrics", "health"]
RESOURCE_NAMES: tuple[str, ...] = get_args(ResourceName)

ALL_ADDRESSES = ("::", "0.0.0.0")  # noqa: S104 -- Synapse's default for a listener without addresses
LOOPBACK = ("::1", "127.0.0.1")

MAX_MODE = 0o777

# What a resource brings with it, as in Synapse.
_IMPLIED: dict[str, tuple[str, ...]] = {
    "client": ("media", "static"),
    "federation": ("keys", "openid", "media"),
}


class Resource(Section):
    """Names of what is served; `compress` is Synapse's and has no effect, replies go out as they are."""

    names: tuple[ResourceName, ...]
    compress: bool = False


def _parse_mode(value: object) -> object:
    """A file mode as people write it: 0660, "0660", 660."""
    digits = str(value)
    # YAML reads 0660 as 432, which is right; 660 without the zero is no mode unless it is read as octal.
    is_octal = isinstance(value, str) or (isinstance(value, int) and value > MAX_MODE)
    if is_octal and digits.removeprefix("0o").isdigit() and not set(digits) & {"8", "9"}:
        return int(digits.removeprefix("0o"), 8)
    return value


class Listener(Section):
    """One port on some addresses (port 0 takes a free one), or a Unix socket.

    Attributes:
        path: of a Unix socket, in place of port and addresses.
        mode: the permissions of the socket.
        x_forwarded: take the client's address from X-Forwarded-For; always so behind a Unix socket, which has none.
    """

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    path: FilePath | None = None
    mode: Annotated[int, BeforeValidator(_parse_mode), Field(ge=0, le=MAX_MODE)] = 0o666
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

    @model_validator(mode="before")
    @classmethod
    def _port_or_path(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("path") is None:
            if "port" not in data:
                raise ValueError("needs a port, or the path of a Unix socket")
            if "mode" in data:
                raise ValueError("mode is for Unix sockets, which have a path")
            return data
        for key in ("port", "bind_address", "bind_addresses"):
            if key in data:
                raise ValueError(f"has a path, so that {key} means nothing")
        if data.get("tls"):
            raise ValueError("has a path, and Unix sockets need no TLS")
        return {**data, "x_forwarded": True}

    def resource_names(self) -> frozenset[str]:
        """All that is served here. /health is on every listener."""
        names = {name for resource in self.resources for name in resource.names}
        return frozenset(names | {more for name in names for more in _IMPLIED.get(name, ())} | {"health"})

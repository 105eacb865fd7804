"""Values as Synapse writes them: durations, sizes, names, networks and files."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from matrixcore.identifiers import InvalidIdentifier, ServerName, parse_server_name
from matrixcore.room_versions import ROOM_VERSIONS

BASE_DIRECTORY = "base_directory"  # the key of the validation context that relative paths start from

_SECOND = 1000
_DURATION_UNITS = {
    "": 1,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3600 * _SECOND,
    "d": 86_400 * _SECOND,
    "w": 7 * 86_400 * _SECOND,
    "y": 365 * 86_400 * _SECOND,
}
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15})([A-Za-z]?)")


class Section(BaseModel):
    """A mapping of the file: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def parse_duration(value: object) -> int:
    """Milliseconds from `90000`, `"90s"`, `"1d"`.

    Raises:
        ValueError: it is something else.
    """
    return _parse_number(value, _DURATION_UNITS, "a duration such as 30s, 5m, 2h, 1d, 1w or 1y")


def parse_size(value: object) -> int:
    """Bytes from `1024`, `"10M"`.

    Raises:
        ValueError: it is something else.
    """
    return _parse_number(value, _SIZE_UNITS, "a size such as 512K, 50M or 1G")


def _parse_number(value: object, units: dict[str, int], expected: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"must be {expected}")
    return int(match[1]) * units[match[2]]


def _parse_name(value: object) -> ServerName:
    try:
        return parse_server_name(value)
    except InvalidIdentifier as error:
        raise ValueError(f"{error}; expected a host name with an optional port, such as example.org") from None


def _parse_room_version(value: object) -> str:
    version = str(value)  # YAML reads a bare 12 as a number
    if version not in ROOM_VERSIONS:
        raise ValueError(f"not a room version that is supported ({', '.join(ROOM_VERSIONS)})")
    return version


def _parse_network(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError("must be a network such as 10.0.0.0/8 or fd00::/8") from None


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get(BASE_DIRECTORY)
    return path if base is None else Path(base) / path.expanduser()


def _join_lines(value: object) -> object:
    # Synapse takes one value where it takes a list.
    return (value,) if isinstance(value, str) else value


Duration = Annotated[int, BeforeValidator(parse_duration)]
"""Milliseconds."""

Size = Annotated[int, BeforeValidator(parse_size)]
"""Bytes (or whatever is counted), with Synapse's binary suffixes."""

Name = Annotated[ServerName, BeforeValidator(_parse_name)]

RoomVersion = Annotated[str, BeforeValidator(_parse_room_version)]

Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_parse_network)]

FilePath = Annotated[Path, AfterValidator(_resolve_path)]
"""A path; a relative one starts from the directory of the configuration file."""

Texts = Annotated[tuple[str, ...], BeforeValidator(_join_lines)]
"""A list of strings, or a single one."""

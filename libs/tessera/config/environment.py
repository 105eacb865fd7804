"""Environment variables that override the file: TESSERA_ and the key in capitals, `__` between nested keys."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tessera.config.database import TesseraSettings
from tessera.config.errors import Problem
from tessera.config.explaining import holds_secret, keys_of, names_in
from tessera.config.sections import section_of
from tessera.config.settings import Settings

PREFIX = "TESSERA_"
OTHER_VARIABLES = frozenset({"TESSERA_CONFIG"})  # the path of the file; the command line reads it

# What Kubernetes gives each container for a Service whose name begins with "tessera".
_SERVICE_LINK = re.compile(
    r"TESSERA_([A-Z0-9_]*_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)"
)


def overridden(data: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """The file's data with the environment's values in place, and the variables that mean nothing.

    Keys of the section `tessera` may be named with or without it: TESSERA_ACCOUNTS_DSN. An empty variable counts as
    absent. Values of lists and mappings are YAML.
    """
    merged = _copy(data)
    problems: list[Problem] = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or _SERVICE_LINK.fullmatch(variable):
            continue
        if not environ[variable]:
            continue
        found = _find(variable.removeprefix(PREFIX).lower().split("__"))
        if found is None:
            problems.append(Problem(variable, _unknown(variable)))
            continue
        path, field = found
        try:
            _set(merged, path, _parse(environ[variable], field))
        except yaml.YAMLError:
            problems.append(Problem(variable, "must be YAML, such as [a, b]"))
    return merged, problems


def _find(parts: list[str]) -> tuple[list[str], FieldInfo | None] | None:
    own = names_in(TesseraSettings)
    if parts[0] not in names_in(Settings) and parts[0] in own:
        parts = ["tessera", *parts]
    section: type[BaseModel] | None = Settings
    field: FieldInfo | None = None
    for number, part in enumerate(parts):
        if section is None:
            # Below a mapping any key goes, but only one.
            is_mapping = field is not None and get_origin(field.annotation) in (dict, Mapping)
            return (parts, None) if is_mapping and number == len(parts) - 1 else None
        field = _field_named(section, part)
        if field is None:
            return None
        section = section_of(field.annotation) if not _is_path_of_secret(field, section, part) else None
    return parts, field


def _field_named(section: type[BaseModel], key: str) -> FieldInfo | None:
    for name, field in section.model_fields.items():
        keys = keys_of(name, field)
        if key in keys or (holds_secret(field) and key.removesuffix("_path") in keys):
            return field
    return None


def _is_path_of_secret(field: FieldInfo, section: type[BaseModel], key: str) -> bool:
    return holds_secret(field) and key.endswith("_path") and key not in section.model_fields


def _parse(text: str, field: FieldInfo | None) -> Any:
    if field is None or holds_secret(field):
        return text
    structured = get_origin(field.annotation) in (dict, list, tuple, frozenset, Mapping) or section_of(field.annotation)
    if structured or text in ("null", "~") or text[0] in "[{":
        return yaml.safe_load(text)
    return text  # pydantic reads numbers and booleans from text; YAML would spoil a version or a name


def _set(data: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = data.get(part)
        data[part] = inner if isinstance(inner, dict) else {}
        data = data[part]
    # The variable replaces the secret and its file alike.
    last = path[-1]
    for twin in (last.removesuffix("_path"), f"{last}_path"):
        if twin != last and twin != "signing_key" and last != "signing_key":
            data.pop(twin, None)
    data[last] = value


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _unknown(variable: str) -> str:
    # Without what they all share, or everything would be near.
    names = {name.upper() for name in names_in(Settings) | names_in(TesseraSettings)}
    for name, field in Settings.model_fields.items():
        names |= {f"{name}__{inner}".upper() for inner in names_in(section_of(field.annotation))}
    near = get_close_matches(variable.removeprefix(PREFIX), sorted(names), n=1, cutoff=0.6)
    return "no such setting" + (f"; did you mean {PREFIX}{near[0]}?" if near else "")

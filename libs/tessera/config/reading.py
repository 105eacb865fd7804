"""From homeserver.yaml and the environment to `Settings`, or to everything that is wrong with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tessera.config.consistency import file_problems, joint_problems
from tessera.config.environment import overridden
from tessera.config.errors import ConfigError, Problem
from tessera.config.explaining import holds_secret, keys_of, problems_of
from tessera.config.sections import section_of
from tessera.config.settings import Settings
from tessera.config.synapse_keys import KNOWN, sort_out
from tessera.config.values import BASE_DIRECTORY
from tessera.config.without_effect import keys_without_effect

_MAX_FILE_BYTES = 4 << 20
_MAX_SECRET_BYTES = 64 << 10


def read_settings(path: Path, environ: Mapping[str, str], *, check_files: bool = False) -> Settings:
    """Read and check one configuration file.

    Args:
        environ: `os.environ`; its TESSERA_* variables override the file.
        check_files: also try whether the files that the configuration names can be read.

    Raises:
        ConfigError: with every problem that was found.
    """
    data = _load(path)
    left, unused, problems = sort_out(data)
    merged, more = overridden(left, environ)
    problems += more
    base = path.absolute().parent
    filled = _with_secrets(merged, Settings, base, (), problems)
    # Validated, unlike a ready-made default, so that its paths start from the file's directory.
    filled.setdefault("tessera", {})
    try:
        settings = Settings.model_validate(filled, context={BASE_DIRECTORY: base})
    except ValidationError as error:
        raise ConfigError(str(path), problems + problems_of(error, Settings, KNOWN)) from None
    problems += joint_problems(settings)
    if check_files:
        problems += file_problems(settings)
    if problems:
        raise ConfigError(str(path), problems)
    return settings.with_unused([*unused, *keys_without_effect(filled, settings)])


class _Loader(yaml.SafeLoader):
    """YAML in which no key may stand twice: of two settings one would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES)
        data = yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror}")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(str(path), [Problem(where, f"is not YAML: {error.problem}")]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(str(path), [Problem("", "is not YAML in UTF-8")]) from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(str(path), [Problem("", "must be a YAML mapping of settings")])
    return data


def _with_secrets(
    data: Mapping[str, Any], model: type[BaseModel], base: Path, location: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """The data with the content of each `<secret>_path` in the place of the secret."""
    filled = dict(data)
    for name, field in model.model_fields.items():
        for key in keys_of(name, field):
            section = section_of(field.annotation)
            if section is not None and isinstance(filled.get(key), dict):
                filled[key] = _with_secrets(filled[key], section, base, (*location, key), problems)
            elif section is not None and isinstance(filled.get(key), list):
                filled[key] = [
                    _with_secrets(one, section, base, (*location, key, str(number)), problems)
                    if isinstance(one, dict)
                    else one
                    for number, one in enumerate(filled[key])
                ]
            path_key = f"{key}_path"
            if holds_secret(field) and path_key in filled and path_key not in model.model_fields:
                secret = _read_secret(filled.pop(path_key), key in filled, base, (*location, path_key), problems)
                if secret is not None:
                    filled[key] = secret
    return filled


def _read_secret(
    value: object, given_twice: bool, base: Path, location: tuple[str, ...], problems: list[Problem]
) -> str | None:
    path_key = ".".join(location)
    if value is None:
        return None
    if given_twice:
        problems.append(Problem(path_key, f"give either this or {location[-1].removesuffix('_path')}"))
        return None
    if not isinstance(value, str):
        problems.append(Problem(path_key, "must be the path of a file"))
        return None
    try:
        with (base / Path(value).expanduser()).open("rb") as file:
            return file.read(_MAX_SECRET_BYTES).decode().strip()
    except OSError as error:
        problems.append(Problem(path_key, f"{value} cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        problems.append(Problem(path_key, f"{value} is not UTF-8"))
    return None

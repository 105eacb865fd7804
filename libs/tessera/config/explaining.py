"""From what pydantic found to what an operator can mend: the path, the reason, the nearest valid name."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from tessera.config.errors import Problem
from tessera.config.sections import section_of

Location = Sequence[int | str]


def problems_of(error: ValidationError, model: type[BaseModel], also_known: Iterable[str] = ()) -> list[Problem]:
    """Every problem of a failed validation.

    Args:
        also_known: names that may be proposed besides the model's own at the top of the file.
    """
    problems = []
    for details in error.errors(include_url=False, include_input=False):
        location = details["loc"]
        path = ".".join(map(str, location))
        if details["type"] == "extra_forbidden":
            names = names_in(_section_at(model, location[:-1]))
            if len(location) == 1:
                names |= set(also_known)
            reason = unknown_name(str(location[-1]), names)
        else:
            reason = _reason(details["type"], details["msg"])
        problems.append(Problem(path, reason))
    return problems


def unknown_name(name: str, valid: Iterable[str]) -> str:
    """That a name is not known, and which one may be meant."""
    near = get_close_matches(name, sorted(valid), n=1, cutoff=0.6)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"


def names_in(model: type[BaseModel] | None) -> set[str]:
    """All keys that a section takes, the files of its secrets among them."""
    names: set[str] = set()
    for name, field in (model.model_fields if model is not None else {}).items():
        for key in keys_of(name, field):
            names.add(key)
            if holds_secret(field):
                names.add(f"{key}_path")
    return names


def keys_of(name: str, field: FieldInfo) -> list[str]:
    """The names that a field has in the file, the usual one first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [name]


def holds_secret(field: FieldInfo) -> bool:
    """Whether the field is a secret, which may stand in a file of its own."""
    return SecretStr in _alternatives(field.annotation)


def _alternatives(annotation: object) -> Iterator[object]:
    """What a value may be: through Annotated and unions, and no deeper; not the values of a mapping."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for one in get_args(annotation):
            yield from _alternatives(one)
    else:
        yield annotation


def _section_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    section: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or section is None:
            continue  # an item of a list has the list's section
        field = next((field for name, field in section.model_fields.items() if part in keys_of(name, field)), None)
        if field is not None:
            section = section_of(field.annotation)
    return section


def _reason(kind: str, message: str) -> str:
    if kind == "missing":
        return "is required"
    if kind == "string_type":
        return "must be a string; put it in quotes"
    text = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return text[:1].lower() + text[1:] if text[:1].isupper() and text[1:2].islower() else text

"""Settings that are read and checked, and that nothing heeds: whoever sets one is told so.

A key leaves this list when its consumer comes; tests/unit/tessera/config/test_config_consumers.py sees to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tessera.config.explaining import keys_of
from tessera.config.sections import section_of

WITHOUT_EFFECT = frozenset(
    [
        "database.allow_unsafe_locale",
        "database.args.keepalives_count",
        "database.args.keepalives_idle",
        "database.args.keepalives_interval",
        "database.txn_limit",
        "email.invite_client_location",
        "email.notif_for_new_users",
        "email.tlsname",
        "forgotten_room_retention_period",
        "listeners.resources.compress",
        "password_config.localdb_enabled",
        "pid_file",
        "tessera.services.listeners.resources.compress",
        "user_ips_max_age",
    ]
)


def keys_without_effect(data: Mapping[str, Any], settings: BaseModel) -> list[str]:
    """The keys of a file that ask for something and get nothing: those at their defaults or switched off do no harm."""
    return sorted(set(_find(data, settings, type(settings), "")))


def _find(data: Mapping[str, Any], values: object, model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        given = [key for key in keys_of(name, field) if key in data]
        if not given:
            continue
        value, path = getattr(values, name), prefix + name
        if path in WITHOUT_EFFECT:
            if value and value != field.get_default(call_default_factory=True):
                yield prefix + given[0]
            continue
        section = section_of(field.annotation)
        if section is not None:
            for inner, found in _pairs(data[given[0]], value):
                if isinstance(found, section):
                    yield from _find(inner, found, section, path + ".")


def _pairs(data: object, value: object) -> Iterator[tuple[Mapping[str, Any], object]]:
    """A section's data with what was made of it; of a list or a mapping of sections each."""
    if isinstance(value, BaseModel):
        if isinstance(data, Mapping):
            yield data, value
    elif isinstance(value, Mapping):
        if isinstance(data, Mapping):
            for key, item in value.items():
                yield from _pairs(data.get(key), item)
    elif isinstance(value, Sequence) and isinstance(data, Sequence) and not isinstance(data, str):
        for given, item in zip(data, value, strict=False):
            yield from _pairs(given, item)

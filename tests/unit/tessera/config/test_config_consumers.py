"""Every setting is heeded somewhere, or is on the list of those that are not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tessera.config.sections import section_of
from tessera.config.settings import Settings
from tessera.config.without_effect import WITHOUT_EFFECT

ROOT = Path(__file__).parents[4]
CONFIG = ROOT / "libs" / "tessera" / "config"
# Heeded without their names being written: by `Settings` itself, or all fields of a section at once.
BY_THE_WAY = frozenset(
    [
        "database.args.cp_max",
        "database.args.cp_min",
        "database.args.sslmode",
        "database.args.sslrootcert",
        "app_service_config_files",  # read with the configuration: `load_appservices`
        "email.notif_from",
        "email.smtp_port",
        "enable_registration_without_verification",
        "login_via_existing_session.require_ui_auth",  # has one value only
        "media_store_path",
        # Read by the properties of their section.
        "oidc_providers.idp_id",
        "oidc_providers.user_mapping_provider",
        "oidc_providers.user_profile_method",
        "report_stats",  # asks for nothing here, whatever its value
        "signing_key_path",
        "tessera.policy_server.signing_key_path",  # likewise: `load_policy_key`
        "tessera.support",
    ]
)


def source(config: bool) -> str:
    """All code, either of the configuration or of everything else."""
    files = [path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(path.read_text() for path in files if path.is_relative_to(CONFIG) == config)


def paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, name) of every setting; below one that nothing heeds there is nothing to look for."""
    for name, field in model.model_fields.items():
        path = prefix + name
        yield path, name
        section = section_of(field.annotation)
        if section is not None and path not in WITHOUT_EFFECT | BY_THE_WAY:
            yield from paths(section, path + ".")


def is_read(code: str, path: str, name: str) -> bool:
    if path.startswith("rc_") and not path.startswith("rc_federation"):  # buckets are named by their paths
        return f'"{path}' in code or path.rpartition(".")[2] in ("per_second", "burst_count")
    return re.search(rf"(?<!\bzlib)\.{name}\b", code) is not None  # zlib.compress is no setting


@pytest.fixture(scope="module")
def code() -> str:
    return source(config=False)


def test_every_setting_has_a_consumer_or_is_said_to_have_none(code: str) -> None:
    known = {path for path, _ in paths(Settings)}
    assert known >= WITHOUT_EFFECT, "a path that is no setting"
    silent = {
        path
        for path, name in paths(Settings)
        if path not in WITHOUT_EFFECT | BY_THE_WAY and not is_read(code, path, name)
    }
    assert not silent, "nothing reads these: wire them, or name them in tessera.config.without_effect"


def test_no_setting_is_said_to_have_no_effect_once_it_has_one(code: str) -> None:
    names = {path: path.rpartition(".")[2] for path in WITHOUT_EFFECT}
    heeded = {path for path, name in names.items() if is_read(code, path, name)}
    assert not heeded, "these are read now: take them out of tessera.config.without_effect"

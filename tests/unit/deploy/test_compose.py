"""docker-compose.yml is what the Compose specification allows, holds no secret, and runs what exists."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_pydantic import ComposeSpecification
from compose_spec import PyCompose
from typer.main import get_command

from matrixcore.signing import read_signing_keys
from services.cli import app
from tessera.config import read_settings

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "deploy" / "docker"
SECRETS = {
    "postgres_password",
    "accounts_dsn",
    "valkey_password",
    "grafana_password",
    "registration_shared_secret",
    "signing_key",
}


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def resolved() -> dict[str, Any]:
    """The file as an implementation has it: variables filled in, without what is there for its authors."""
    text = re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    return {key: value for key, value in yaml.safe_load(text).items() if not key.startswith("x-")}


def ours() -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def test_the_file_follows_the_schema_of_the_specification() -> None:
    ComposeSpecification.model_validate(resolved())


def test_a_second_reader_of_the_specification_agrees() -> None:
    PyCompose.from_yaml(yaml.safe_dump(resolved()))


def test_the_small_stack_is_small() -> None:
    profiles = {name: set(service.get("profiles", ())) for name, service in compose()["services"].items()}
    small = {name for name, of in profiles.items() if not of or "small" in of}
    assert small == {"postgres", "serve", "proxy"}
    cluster = {name for name, of in profiles.items() if "cluster" in of}
    services = {"gateway", "rooms", "sync", "media", "projector", "federation-in", "federation-out", "push"}
    services.add("appservice")
    assert {"kafka", "valkey", "migrate", "topics"} | services == cluster


@pytest.mark.parametrize("name", sorted(ours()))
def test_our_containers_can_do_little(name: str) -> None:
    service = ours()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("ports"), "only the proxy is reached from outside"


@pytest.mark.parametrize("name", sorted(ours()))
def test_our_containers_run_commands_that_exist(name: str) -> None:
    words = ours()[name]["command"]
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in commands


def test_every_secret_is_a_file_that_set_up_makes(tmp_path: Path) -> None:
    declared = compose()["secrets"]
    assert set(declared) == SECRETS
    used = {secret for service in compose()["services"].values() for secret in service.get("secrets", ())}
    assert used == SECRETS
    home = set_up(tmp_path, "chat.example.org")
    for name, secret in declared.items():
        path = home / secret["file"]
        assert len(path.read_text().strip()) >= 24, name
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, "others on the machine cannot enter the folder"
    assert read_signing_keys((home / declared["signing_key"]["file"]).read_text())
    assert stat.S_IMODE((home / ".env").stat().st_mode) == 0o600


def test_set_up_twice_changes_nothing(tmp_path: Path) -> None:
    home = set_up(tmp_path, "chat.example.org")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    set_up(tmp_path, "other.example.org")
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_set_up_refuses_what_is_no_name(tmp_path: Path) -> None:
    copy_docker(tmp_path)
    for words in ([], ["two words"], ["a/b"], ["$(id)"]):
        done = subprocess.run([tmp_path / "deploy/docker/setup.sh", *words], capture_output=True, check=False)
        assert done.returncode == 2


def test_the_configuration_is_right(tmp_path: Path) -> None:
    home = set_up(tmp_path, "chat.example.org")
    secrets = home / "deploy" / "docker" / "secrets"
    text = (DOCKER / "homeserver.yaml").read_text().replace("/run/secrets", str(secrets))
    (tmp_path / "homeserver.yaml").write_text(text)
    settings = read_settings(tmp_path / "homeserver.yaml", environment(home), check_files=True)
    assert settings.server_name == "chat.example.org"
    assert settings.public_baseurl == "https://matrix.chat.example.org/"
    assert settings.accounts_dsn is not None
    assert settings.accounts_dsn.startswith("postgresql://tessera:")
    runnable = {name for name, service in ours().items() if service["command"][0] == "run"}
    assert set(settings.tessera.services) == runnable
    grace = int(ours()["rooms"]["stop_grace_period"].removesuffix("s"))
    assert settings.tessera.drain_notice_seconds + settings.tessera.drain_seconds < grace


def test_no_password_lies_in_the_repository() -> None:
    for path in (ROOT / "docker-compose.yml", *DOCKER.iterdir()):
        if path.is_file() and path.name != "setup.sh":
            assert not re.search(r"(?i)(password|secret)\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{12,}", path.read_text()), path


def test_caddy_understands_its_file() -> None:
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("Caddy (Debian's package caddy) is not installed: its file was not read")
    words = [caddy, "adapt", "--config", str(DOCKER / "Caddyfile"), "--adapter", "caddyfile"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_proxy_knows_every_route() -> None:
    """What sync and media answer goes to them, and to nobody else."""
    text = (DOCKER / "Caddyfile").read_text()
    for path in (
        "/_matrix/client/v3/sync",
        "/_matrix/client/v3/keys/changes",
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
        "/_matrix/media/*",
        "/_matrix/federation/*",
        "/_synapse/client/*",
    ):
        assert path in text
    for name in ("gateway", "sync", "media", "federation-in"):
        assert f"to-{name}" in text
        assert f"to-{name}" in ours()[name]["networks"]["inside"]["aliases"]
        assert f"to-{name}" in ours()["serve"]["networks"]["inside"]["aliases"]


def copy_docker(folder: Path) -> None:
    target = folder / "deploy" / "docker"
    if not target.exists():
        shutil.copytree(DOCKER, target, ignore=shutil.ignore_patterns("secrets", "element-config.json"))


def set_up(folder: Path, server_name: str) -> Path:
    """Run setup.sh in a copy; the copy's root."""
    copy_docker(folder)
    done = subprocess.run([folder / "deploy/docker/setup.sh", server_name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def environment(home: Path) -> dict[str, str]:
    """What compose gives our containers: the service's `environment` with the variables of .env."""
    lines = (home / ".env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def filled(value: str) -> str:
        return re.sub(r"\$\{(\w+)[^}]*\}", lambda found: variables[found[1]], value)

    given = {name: filled(value) for name, value in ours()["gateway"]["environment"].items()}
    return {name: value for name, value in (os.environ | given).items() if name.startswith("TESSERA_")}

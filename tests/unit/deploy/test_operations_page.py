"""docs/operations.md names commands, settings, metrics and files that exist."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import BaseModel
from typer.main import get_command

from services.cli import app
from tessera.config import Settings
from tessera.config.sections import section_of
from tests.unit.deploy.defined_metrics import defined_metrics
from tests.unit.deploy.test_monitoring import rules

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()
# Words after "tessera" in a line that is no command.
NOT_COMMANDS = {"dump", "process"}


def code() -> str:
    """What is set as code, in lines and in blocks."""
    return "\n".join([*re.findall(r"`([^`\n]+)`", PAGE), *re.findall(r"^ {4,}(.+)$", PAGE, re.MULTILINE)])


def test_its_commands_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"(?:^|[\s/;&(])(?<!-n )tessera ([a-z][a-z-]+)(?: ([a-z]+))?", code(), re.MULTILINE))
    assert len(named) > 8
    for command, inner in named:
        if command in NOT_COMMANDS:
            continue
        assert command in commands, command
        if inner and hasattr(commands[command], "commands"):
            assert inner in commands[command].commands, f"{command} {inner}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tessera\.[a-z_]+(?:\.[a-z_]+)*)`", PAGE))))
def test_its_settings_exist(path: str) -> None:
    model: type[BaseModel] | None = Settings
    is_key = False  # of a mapping: any goes
    for part in path.split("."):
        if is_key:
            is_key = False
            continue
        if model is None:
            return
        name = part.removesuffix("_path")
        assert name in model.model_fields, path
        annotation = model.model_fields[name].annotation
        is_key = get_origin(annotation) in (Mapping, dict)
        model = section_of(annotation)


def test_its_metrics_exist() -> None:
    known = defined_metrics() | {rule["record"] for rule in rules() if "record" in rule}
    families = known | {re.sub(r"_(bucket|count|sum)$", "", name) for name in known}
    named = set(re.findall(r"\b(tessera_[a-z_]+|tessera:[a-z0-9_:]+)", PAGE))
    assert named
    assert named <= families


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE))))
def test_its_links_lead_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    page = PAGE
    if path:
        target = ROOT / "docs" / path
        assert target.exists()
        page = target.read_text() if anchor else ""
    if anchor:
        headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bdeploy/[\w./-]+\w", PAGE + README))))
def test_its_files_are_there(path: str) -> None:
    made_by_set_up = path.startswith("deploy/docker/secrets")
    assert made_by_set_up or (ROOT / path).exists()

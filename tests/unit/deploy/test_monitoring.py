"""Rules and dashboards ask for what the code has, and every alert says what to do."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.defined_metrics import defined_metrics, metrics_of

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules" / "tessera.yml"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
_INTERVAL = re.compile(r"\$__(rate_)?interval|\$__range")


def groups() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def known() -> set[str]:
    return defined_metrics() | {rule["record"] for rule in rules() if "record" in rule}


def panels(dashboard: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return loaded


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert metrics_of(rule["expr"]) <= known()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_metrics_that_exist(dashboard: Path) -> None:
    asked: set[str] = set()
    for panel in panels(dashboard):
        for target in panel.get("targets", ()):
            asked |= metrics_of(_INTERVAL.sub("5m", target["expr"]))
    assert asked, "a dashboard shows something"
    assert asked <= known()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap(dashboard: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(dashboard):
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels(dashboard)}) == len(panels(dashboard))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_a_section_for_whoever_is_woken(alert: dict[str, Any]) -> None:
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert alert["alert"] in headings
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]


def test_promtool_agrees() -> None:
    """Where promtool is not there, the expressions have been parsed above and the cases are not run."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed: rules parsed, their cases not run")
    cases = [["check", "rules", str(RULES)], ["test", "rules", str(MONITORING / "tests" / "tessera_test.yml")]]
    cases.append(["check", "config", "--syntax-only", str(MONITORING / "prometheus.yml")])
    for words in cases:
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_has_the_same_rules() -> None:
    manifest = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert manifest["spec"]["groups"] == groups()


def test_kubernetes_has_the_same_dashboards() -> None:
    generated = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())["configMapGenerator"]
    files = {file for generator in generated for file in generator["files"]}
    assert files == {str(path.relative_to(MONITORING)) for path in DASHBOARDS}

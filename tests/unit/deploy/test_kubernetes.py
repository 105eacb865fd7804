"""The manifests are valid, ask for few rights, and fit the code: its commands, settings, topics and metrics."""

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from services.cli import app
from services.sync.routes import SyncRoutes
from services.sync.sliding.routes import SlidingRoutes
from tessera.bus.kafka.topics import NAMES, plan_topics
from tessera.config import KafkaSettings, Settings, read_settings
from tessera.config.services import SERVICE_NAMES
from tests.unit.deploy.custom_resources import SCHEMAS
from tests.unit.deploy.defined_metrics import defined_metrics, metrics_of
from tests.unit.deploy.rendered_manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Manifest,
    describe_renderer,
    find_renderer,
    named,
    of_kind,
    overlay,
    plain,
    pod_of,
    render,
)

VERSIONS = ("1.30", "1.37")  # the oldest and the newest that the manifests are for
SECRETS = "/etc/tessera/secrets"
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")
only_rendered = pytest.mark.skipif(find_renderer() is None, reason=describe_renderer())


def check(manifest: Manifest) -> None:
    """Validate one resource by the schema of its kind; no kind goes unchecked."""
    schema = SCHEMAS.get((manifest["apiVersion"], manifest["kind"]))
    if schema is not None:
        jsonschema.validate(manifest, schema)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def ours(name: str) -> list[Manifest]:
    """The workloads of an overlay that run our image."""
    return [one for one in of_kind(overlay(name), *WORKLOADS) if _container(one)["name"] == "tessera"]


def _container(manifest: Manifest) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(manifest)["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_resource_of_an_overlay_is_valid(name: str) -> None:
    manifests = overlay(name)
    assert len(manifests) > 20
    for manifest in manifests:
        check(manifest)


def test_what_no_overlay_uses_is_valid_too() -> None:
    files = [*KUBERNETES.rglob("*.yaml"), *(ROOT / "deploy" / "monitoring").glob("*.yaml")]
    for manifest in (manifest for file in files for manifest in plain(file)):
        if manifest.get("kind") not in ("Deployment", "StatefulSet", "Job"):  # incomplete before they are patched
            check(manifest)


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_names_are_unique_and_references_lead_somewhere(name: str) -> None:
    manifests = overlay(name)
    keys = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(keys) == len(set(keys))
    config_maps = {one["metadata"]["name"] for one in of_kind(manifests, "ConfigMap")}
    claims = {one["metadata"]["name"] for one in of_kind(manifests, "PersistentVolumeClaim")}
    for workload in of_kind(manifests, *WORKLOADS):
        spec = pod_of(workload)["spec"]
        for volume in spec.get("volumes", ()):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in config_maps
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        for source in _container(workload).get("envFrom", ()):
            assert source["configMapRef"]["name"] in config_maps
    services = {one["metadata"]["name"] for one in of_kind(manifests, "Service")}
    for ingress in of_kind(manifests, "Ingress"):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            assert path["backend"]["service"]["name"] in services


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_a_change_of_configuration_rolls_the_pods(name: str) -> None:
    for config_map in of_kind(overlay(name), "ConfigMap"):
        if config_map["metadata"]["name"] != "tessera-dashboards":
            assert re.fullmatch(r"tessera-[a-z-]+-[0-9a-z]{10}", config_map["metadata"]["name"])


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    for workload in of_kind(overlay(name), *WORKLOADS):
        spec = pod_of(workload)["spec"]
        where = workload["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in spec["containers"]:
            allowed = container["securityContext"]
            assert allowed["allowPrivilegeEscalation"] is False, where
            assert allowed["capabilities"] == {"drop": ["ALL"]}, where
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, where
            assert "memory" in container["resources"]["limits"], where
    for workload in ours(name):
        assert _container(workload)["securityContext"]["readOnlyRootFilesystem"] is True


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_lies_in_the_repository(name: str) -> None:
    assert not of_kind(overlay(name), "Secret")


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_service_runs_and_what_runs_exists(name: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    run: set[str] = set()
    for workload in ours(name):
        words = _container(workload)["args"]
        assert words[0] in commands
        if words[0] == "run":
            run.add(words[1])
    assert run == set(SERVICE_NAMES)


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_serving_pods_are_probed_and_drained(name: str, tmp_path: Path) -> None:
    settings = configuration(name, tmp_path)
    for workload in of_kind(ours(name), "Deployment", "StatefulSet"):
        spec, container = pod_of(workload)["spec"], _container(workload)
        assert container["livenessProbe"]["httpGet"]["path"] == "/health"
        assert container["startupProbe"]["httpGet"]["path"] == "/health"
        assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container["readinessProbe"]["timeoutSeconds"] > 3, "/ready itself may take three seconds"
        waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        drains = settings.tessera.drain_notice_seconds + settings.tessera.drain_seconds
        assert waits + drains + 10 <= spec["terminationGracePeriodSeconds"]
        assert {constraint["topologyKey"] for constraint in spec["topologySpreadConstraints"]} == {
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        }


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_find_their_pods(name: str) -> None:
    manifests = overlay(name)
    pods = [pod_of(one)["metadata"]["labels"] for one in of_kind(manifests, "Deployment", "StatefulSet")]

    def finds(selector: dict[str, str]) -> int:
        return sum(selector.items() <= labels.items() for labels in pods)

    for service in of_kind(manifests, "Service"):
        assert finds(service["spec"]["selector"]) == 1, service["metadata"]["name"]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert finds(budget["spec"]["selector"]["matchLabels"]) == 1
    for workload in ours(name):
        assert pod_of(workload)["metadata"]["labels"]["app.kubernetes.io/name"] == "tessera"
    for monitor in of_kind(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [one for one in of_kind(manifests, "Service") if wanted <= one["metadata"]["labels"].items()]
        assert len(found) == len(SERVICE_NAMES)


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_network_is_closed_but_for_what_is_named(name: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(overlay(name), "NetworkPolicy")}
    deny = policies["tessera-default-deny"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        for rule in (*policy.get("ingress", ()), *policy.get("egress", ())):
            assert rule["ports"], "no rule opens every port"


@only_rendered
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_configuration_is_right(name: str, tmp_path: Path) -> None:
    settings = configuration(name, tmp_path)
    assert settings.tessera.kafka is not None
    assert settings.tessera.redis is not None
    assert set(settings.tessera.services) == set(SERVICE_NAMES)
    for service in settings.tessera.services.values():
        assert [listener.port for listener in service.listeners] == [8008]
    assert settings.tessera.kafka.replication_factor == (1 if name == "small" else 3)


def configuration(name: str, folder: Path) -> Settings:
    """What a pod of an overlay reads: its file, its variables, and files in the place of its secrets."""
    manifests = overlay(name)
    variables: dict[str, str] = dict(named(manifests, "ConfigMap", "tessera-env")["data"])
    for entry in _container(named(manifests, "StatefulSet", "tessera-rooms"))["env"]:
        is_secret = "secretKeyRef" in entry["valueFrom"]
        variables[entry["name"]] = f"postgresql://db/{entry['name'].lower()}" if is_secret else "tessera-rooms-0"
    text = named(manifests, "ConfigMap", "tessera-config")["data"]["homeserver.yaml"]
    for key in ("accounts_dsn", "registration_shared_secret", "redis_password", "kafka_password"):
        (folder / key).write_text("postgresql://db/accounts" if key == "accounts_dsn" else "secret")
    (folder / "homeserver.yaml").write_text(text.replace(SECRETS, str(folder)))
    return read_settings(
        folder / "homeserver.yaml", {key: value.replace(SECRETS, str(folder)) for key, value in variables.items()}
    )


@only_rendered
def test_a_new_sync_route_is_led_to_sync() -> None:
    routes = {route.path for kind in (SyncRoutes, SlidingRoutes) for route in kind.__new__(kind).routes}
    for kind, folder in (("Ingress", "components/ingress-nginx"), ("HTTPRoute", "components/gateway-api")):
        files = [manifest for file in (KUBERNETES / folder).glob("*.yaml") for manifest in plain(file)]
        (route,) = (one for one in of_kind(files, kind) if one["metadata"]["name"] == "tessera-sync")
        if kind == "Ingress":
            led = {path["path"] for path in route["spec"]["rules"][0]["http"]["paths"]}
        else:
            led = {match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]}
        assert led == routes


@only_rendered
def test_strimzi_makes_the_topics_that_the_code_wants() -> None:
    manifests = render(KUBERNETES / "strimzi")
    plan = plan_topics(KafkaSettings(bootstrap_servers=("kafka:9092",)), Settings.for_tests().tessera.partitions)
    topics = of_kind(manifests, "KafkaTopic")
    assert {topic["metadata"]["name"] for topic in topics} == set(NAMES)
    for topic in topics:
        assert topic["spec"]["partitions"] == plan.partitions
        assert topic["spec"]["replicas"] == plan.replication_factor
        assert topic["spec"]["config"] == plan.configs


def test_scaling_asks_for_metrics_that_exist() -> None:
    for file in (KUBERNETES / "components" / "keda").glob("*.yaml"):
        for manifest in plain(file):
            for trigger in manifest["spec"]["triggers"]:
                assert metrics_of(trigger["metadata"]["query"]) <= defined_metrics()


def test_secrets_are_made_once_and_are_valid(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first, second = (make_secrets("--small", str(folder)) for _ in range(2))
    assert first.stdout == second.stdout
    secrets = [manifest for manifest in yaml.safe_load_all(first.stdout) if manifest]
    for secret in secrets:
        check(secret)
    assert [secret["metadata"]["name"] for secret in secrets] == ["tessera-secrets", "tessera-backup", "tessera-stores"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_secrets_need_an_account_store(tmp_path: Path) -> None:
    refused = make_secrets(str(tmp_path / "secrets"))
    assert refused.returncode == 1
    assert "accounts_dsn" in refused.stderr
    (tmp_path / "secrets" / "accounts_dsn").write_text("postgresql://db/accounts")
    (tmp_path / "secrets" / "shard_first").write_text("postgresql://db/first")
    _, backup = yaml.safe_load_all(make_secrets(str(tmp_path / "secrets")).stdout)
    assert backup["data"].keys() == {"accounts", "first"}


def make_secrets(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KUBERNETES / "make-secrets.sh", *words], capture_output=True, text=True, check=False)
